"""The facts of the trivia data set, one table per family.

Each row carries exactly the grammatical forms its family's wordings need, so that no
template has to guess an article, a tense or a plural: a wrong form would make the
question ungrammatical, and a careless one would make it ambiguous.

Every fact is chosen to have one undisputed short answer. Many are near misses of
another fact on purpose (see ``near_misses.py``): a semantic cache that takes "Austria"
for "Australia" has to be caught by this data.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """One fact: its group id, the slot values of its wordings and its answer."""

    group: str
    slots: dict[str, str]
    answer: str


def slug(text: str) -> str:
    """Return ``text`` as a lower-case ASCII id, without a leading article."""
    lowered = text.lower().removeprefix("the ").replace("'", "")
    lowered = lowered.translate(str.maketrans("áäéèíóöőüâç", "aaeeiooouac"))
    parts = "".join(ch if ch.isascii() and ch.isalnum() else " " for ch in lowered)
    return "-".join(parts.split())


def possessive(name: str) -> str:
    """Return the possessive of ``name`` ("the Netherlands'", "Peru's")."""
    return name + ("'" if name.endswith("s") else "'s")


def table(family: str, columns: str, text: str) -> list[Fact]:
    """Parse a ``|``-separated table; the last column is the answer.

    A column named ``id`` names the group and is no slot; without one the group is named
    after the first column. Each slot ``x`` also yields ``x_s`` (possessive) and
    ``x_bare`` (without "the"), so that the tables need not repeat them.
    """
    names = columns.split()
    facts: list[Fact] = []
    for line in text.strip().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) != len(names) + 1:
            raise ValueError(f"{family}: expected {len(names) + 1} cells in {line!r}")
        slots: dict[str, str] = {}
        for name, cell in zip(names, cells, strict=False):
            slots[name] = cell
            slots[f"{name}_s"] = possessive(cell)
            slots[f"{name}_bare"] = cell.removeprefix("the ")
        key = slots["id"] if "id" in slots else slug(cells[0])
        facts.append(Fact(f"{family}/{key}", slots, cells[-1]))
    return facts


def events(family: str, text: str) -> list[Fact]:
    """Parse the table of events, putting together the clauses that wordings ask with."""
    facts: list[Fact] = []
    for fact in table(family, "id subject aux verb past event", text):
        slots = fact.slots
        subject, event = slots["subject"], slots["event"]
        clauses = {
            "did": f"{slots['aux']} {subject} {slots['verb']}",
            "past": f"{subject} {slots['past']}",
            "event": f"{event} {subject}" if event.endswith(" of") else event,
        }
        facts.append(Fact(fact.group, clauses, fact.answer))
    return facts


CAPITAL = """
Austria | Vienna
Australia | Canberra
Slovakia | Bratislava
Slovenia | Ljubljana
Niger | Niamey
Nigeria | Abuja
Guinea | Conakry
Guinea-Bissau | Bissau
Dominica | Roseau
the Dominican Republic | Santo Domingo
North Korea | Pyongyang
South Korea | Seoul
the Democratic Republic of the Congo | Kinshasa
the Republic of the Congo | Brazzaville
Latvia | Riga
Lithuania | Vilnius
Iran | Tehran
Iraq | Baghdad
Mali | Bamako
Malawi | Lilongwe
Mauritius | Port Louis
Mauritania | Nouakchott
Paraguay | Asunción
Uruguay | Montevideo
Hungary | Budapest
Romania | Bucharest
the United States | Washington, D.C.
the United Kingdom | London
Canada | Ottawa
Brazil | Brasília
Turkey | Ankara
New Zealand | Wellington
"""

CAPITAL_OF = """
Vienna | Austria
Canberra | Australia
Bratislava | Slovakia
Ljubljana | Slovenia
Niamey | Niger
Abuja | Nigeria
Roseau | Dominica
Santo Domingo | Dominican Republic
Pyongyang | North Korea
Seoul | South Korea
Budapest | Hungary
Bucharest | Romania
Kingston | Jamaica
Kingstown | Saint Vincent and the Grenadines
"""

AUTHOR = """
War and Peace | Leo Tolstoy
Crime and Punishment | Fyodor Dostoevsky
Pride and Prejudice | Jane Austen
Jane Eyre | Charlotte Brontë
Wuthering Heights | Emily Brontë
The Tenant of Wildfell Hall | Anne Brontë
Frankenstein | Mary Shelley
Dracula | Bram Stoker
Don Quixote | Miguel de Cervantes
Moby-Dick | Herman Melville
Nineteen Eighty-Four | George Orwell
Brave New World | Aldous Huxley
The Great Gatsby | F. Scott Fitzgerald
The Old Man and the Sea | Ernest Hemingway
To Kill a Mockingbird | Harper Lee
The Lord of the Rings | J. R. R. Tolkien
Lord of the Flies | William Golding
The War of the Worlds | H. G. Wells
Around the World in Eighty Days | Jules Verne
The Count of Monte Cristo | Alexandre Dumas
Treasure Island | Robert Louis Stevenson
The Picture of Dorian Gray | Oscar Wilde
"""

SYMBOL = """
gold | Au
silver | Ag
sodium | Na
potassium | K
iron | Fe
lead | Pb
tin | Sn
copper | Cu
mercury | Hg
magnesium | Mg
manganese | Mn
tungsten | W
carbon | C
calcium | Ca
cobalt | Co
chlorine | Cl
chromium | Cr
hydrogen | H
helium | He
phosphorus | P
"""

ELEMENT = """
Au | Gold
Ag | Silver
Na | Sodium
K | Potassium
Fe | Iron
Pb | Lead
Sn | Tin
Cu | Copper
Hg | Mercury
Mg | Magnesium
Mn | Manganese
W | Tungsten
"""

# id | subject | auxiliary | verb after it | past verb | event | year
# An event that ends in "of" goes on with the subject.
YEAR = """
wwi-begin | World War I | did | begin | began | the start of | 1914
wwi-end | World War I | did | end | ended | the end of | 1918
wwii-begin | World War II | did | begin | began | the start of | 1939
wwii-end | World War II | did | end | ended | the end of | 1945
us-civil-war-begin | the American Civil War | did | begin | began | the start of | 1861
us-civil-war-end | the American Civil War | did | end | ended | the end of | 1865
spanish-civil-war-begin | the Spanish Civil War | did | begin | began | the start of | 1936
french-revolution-begin | the French Revolution | did | begin | began | the start of | 1789
berlin-wall-built | the Berlin Wall | was | built | was built | the building of | 1961
berlin-wall-fell | the Berlin Wall | did | fall | fell | the fall of | 1989
titanic-sank | the Titanic | did | sink | sank | the sinking of | 1912
lusitania-sank | the Lusitania | did | sink | sank | the sinking of | 1915
moon | humans | did | first land on the Moon | first landed on the Moon | the first Moon landing by humans | 1969
sputnik-launched | Sputnik 1 | was | launched | was launched | the launch of | 1957
hastings | the Battle of Hastings | was | fought | was fought | the Battle of Hastings | 1066
waterloo | the Battle of Waterloo | was | fought | was fought | the Battle of Waterloo | 1815
trafalgar | the Battle of Trafalgar | was | fought | was fought | the Battle of Trafalgar | 1805
columbus | Columbus | did | first reach America | first reached America | the first voyage of Columbus to America | 1492
us-independence | the American Declaration of Independence | was | adopted | was adopted | the adoption of | 1776
kennedy-shot | John F. Kennedy | was | assassinated | was assassinated | the assassination of | 1963
chernobyl | the Chernobyl disaster | did | happen | happened | the Chernobyl disaster | 1986
fukushima | the Fukushima disaster | did | happen | happened | the Fukushima disaster | 2011
suez-opened | the Suez Canal | did | open | opened | the opening of | 1869
panama-opened | the Panama Canal | did | open | opened | the opening of | 1914
ussr-founded | the Soviet Union | was | founded | was founded | the founding of | 1922
ussr-dissolved | the Soviet Union | was | dissolved | was dissolved | the dissolution of | 1991
"""

# id | superlative | another word for it | noun | plural | place | answer
RECORD = """
longest-river-africa | longest | longest | river | rivers | in Africa | Nile
longest-river-europe | longest | longest | river | rivers | in Europe | Volga
longest-river-asia | longest | longest | river | rivers | in Asia | Yangtze
largest-ocean | largest | biggest | ocean | oceans | in the world | Pacific Ocean
smallest-ocean | smallest | smallest | ocean | oceans | in the world | Arctic Ocean
largest-country | largest | biggest | country | countries | in the world | Russia
smallest-country | smallest | smallest | country | countries | in the world | Vatican City
largest-continent | largest | biggest | continent | continents | in the world | Asia
smallest-continent | smallest | smallest | continent | continents | in the world | Australia
highest-mountain-world | highest | highest | mountain | mountains | in the world | Mount Everest
highest-mountain-africa | highest | highest | mountain | mountains | in Africa | Kilimanjaro
highest-mountain-south-america | highest | highest | mountain | mountains | in South America | Aconcagua
highest-mountain-north-america | highest | highest | mountain | mountains | in North America | Denali
deepest-lake-world | deepest | deepest | lake | lakes | in the world | Lake Baikal
deepest-lake-africa | deepest | deepest | lake | lakes | in Africa | Lake Tanganyika
largest-lake-africa | largest | biggest | lake | lakes | in Africa | Lake Victoria
largest-island | largest | biggest | island | islands | in the world | Greenland
tallest-building | tallest | tallest | building | buildings | in the world | Burj Khalifa
tallest-animal | tallest | tallest | animal | animals | in the world | Giraffe
largest-animal | largest | biggest | animal | animals | in the world | Blue whale
largest-bird | largest | biggest | bird | birds | in the world | Ostrich
smallest-bird | smallest | smallest | bird | birds | in the world | Bee hummingbird
longest-bone | longest | longest | bone | bones | in the human body | Femur
smallest-bone | smallest | smallest | bone | bones | in the human body | Stapes
"""

INVENTOR = """
the telephone | Alexander Graham Bell
the phonograph | Thomas Edison
dynamite | Alfred Nobel
the World Wide Web | Tim Berners-Lee
the wireless telegraph | Guglielmo Marconi
the reflecting telescope | Isaac Newton
the electric battery | Alessandro Volta
the lightning rod | Benjamin Franklin
the diesel engine | Rudolf Diesel
the cotton gin | Eli Whitney
the injected polio vaccine | Jonas Salk
the oral polio vaccine | Albert Sabin
the saxophone | Adolphe Sax
the mercury thermometer | Daniel Gabriel Fahrenheit
the mercury barometer | Evangelista Torricelli
the computer mouse | Douglas Engelbart
Velcro | George de Mestral
the pendulum clock | Christiaan Huygens
"""

# thing | verb that agrees with it | answer
DISCOVERER = """
penicillin | was | Alexander Fleming
X-rays | were | Wilhelm Röntgen
radioactivity | was | Henri Becquerel
radio waves | were | Heinrich Hertz
the electron | was | J. J. Thomson
the neutron | was | James Chadwick
the proton | was | Ernest Rutherford
the positron | was | Carl Anderson
the planet Uranus | was | William Herschel
the dwarf planet Pluto | was | Clyde Tombaugh
the dwarf planet Ceres | was | Giuseppe Piazzi
Saturn's moon Titan | was | Christiaan Huygens
electromagnetic induction | was | Michael Faraday
the ABO blood groups | were | Karl Landsteiner
the tomb of Tutankhamun | was | Howard Carter
Teflon | was | Roy Plunkett
"""

CURRENCY = """
Japan | Japanese yen
China | Chinese yuan
India | Indian rupee
Sweden | Swedish krona
Norway | Norwegian krone
Hungary | Hungarian forint
Romania | Romanian leu
Poland | Polish zloty
Austria | Euro
Australia | Australian dollar
Russia | Russian ruble
South Korea | South Korean won
North Korea | North Korean won
Thailand | Thai baht
Mexico | Mexican peso
Brazil | Brazilian real
Nigeria | Nigerian naira
Niger | West African CFA franc
the United Kingdom | Pound sterling
Switzerland | Swiss franc
"""

RIVER = """
London | Thames
Paris | Seine
Rome | Tiber
Florence | Arno
Budapest | Danube
Bucharest | Dâmbovița
Prague | Vltava
Warsaw | Vistula
Cologne | Rhine
Hamburg | Elbe
Berlin | Spree
Bern | Aare
Lisbon | Tagus
Porto | Douro
Seville | Guadalquivir
Cairo | Nile
Baghdad | Tigris
New Orleans | Mississippi
Saint Petersburg | Neva
Glasgow | Clyde
"""

PAINTER = """
the Mona Lisa | Leonardo da Vinci
The Starry Night | Vincent van Gogh
The Scream | Edvard Munch
Guernica | Pablo Picasso
Girl with a Pearl Earring | Johannes Vermeer
The Night Watch | Rembrandt
The Birth of Venus | Sandro Botticelli
Las Meninas | Diego Velázquez
The Persistence of Memory | Salvador Dalí
The Kiss | Gustav Klimt
American Gothic | Grant Wood
Nighthawks | Edward Hopper
The School of Athens | Raphael
The Garden of Earthly Delights | Hieronymus Bosch
Impression, Sunrise | Claude Monet
Olympia | Édouard Manet
"""

# artist | scene, as the object of "shows" | title
ARTWORK = """
Leonardo da Vinci | a smiling woman with folded hands | Mona Lisa
Vincent van Gogh | a swirling night sky above a village | The Starry Night
Edvard Munch | a screaming figure on a bridge | The Scream
Pablo Picasso | the bombing of a Basque town | Guernica
Rembrandt | a company of civic guards | The Night Watch
Sandro Botticelli | a goddess standing on a seashell | The Birth of Venus
Salvador Dalí | melting clocks in an empty landscape | The Persistence of Memory
Gustav Klimt | a couple embracing in golden robes | The Kiss
Grant Wood | a farmer with a pitchfork | American Gothic
Edward Hopper | late customers in a diner | Nighthawks
Raphael | the great philosophers of ancient Greece | The School of Athens
Diego Velázquez | a young princess with her maids | Las Meninas
"""

COMPOSER = """
The Four Seasons | Antonio Vivaldi
The Marriage of Figaro | Wolfgang Amadeus Mozart
The Barber of Seville | Gioachino Rossini
the Moonlight Sonata | Ludwig van Beethoven
Swan Lake | Pyotr Ilyich Tchaikovsky
Carmen | Georges Bizet
Aida | Giuseppe Verdi
Tosca | Giacomo Puccini
the oratorio Messiah | George Frideric Handel
the oratorio The Creation | Joseph Haydn
the St Matthew Passion | Johann Sebastian Bach
Boléro | Maurice Ravel
The Rite of Spring | Igor Stravinsky
The Planets | Gustav Holst
Rhapsody in Blue | George Gershwin
The Blue Danube | Johann Strauss II
Also sprach Zarathustra | Richard Strauss
Scheherazade | Nikolai Rimsky-Korsakov
"""

LANGUAGE = """
Brazil | Portuguese
Colombia | Spanish
Austria | German
Slovakia | Slovak
Slovenia | Slovene
Latvia | Latvian
Lithuania | Lithuanian
Estonia | Estonian
Iran | Persian
Egypt | Arabic
Bangladesh | Bengali
Cambodia | Khmer
Laos | Lao
Hungary | Hungarian
Romania | Romanian
Iceland | Icelandic
"""

# id | predicate after "which planet" | answer
PLANET = """
closest-to-sun | is closest to the Sun | Mercury
farthest-from-sun | is farthest from the Sun | Neptune
largest | is the largest | Jupiter
smallest | is the smallest | Mercury
hottest | is the hottest | Venus
third-from-sun | is third from the Sun | Earth
fourth-from-sun | is fourth from the Sun | Mars
sixth-from-sun | is sixth from the Sun | Saturn
seventh-from-sun | is seventh from the Sun | Uranus
red-planet | is nicknamed the Red Planet | Mars
great-red-spot | has the Great Red Spot | Jupiter
spins-on-side | spins on its side | Uranus
spins-fastest | spins the fastest | Jupiter
spins-slowest | spins the slowest | Venus
shortest-year | has the shortest year | Mercury
longest-year | has the longest year | Neptune
moon-titan | has the moon Titan | Saturn
moon-titania | has the moon Titania | Uranus
moon-triton | has the moon Triton | Neptune
moon-phobos | has the moon Phobos | Mars
"""

# id | first option | second option | predicate | answer
CHOICE = """
gas-giant | Jupiter | Mars | is a gas giant | Jupiter
not-gas-giant | Jupiter | Mars | is not a gas giant | Mars
mammal | the dolphin | the shark | is a mammal | Dolphin
not-mammal | the dolphin | the shark | is not a mammal | Shark
bird | the bat | the penguin | is a bird | Penguin
not-bird | the bat | the penguin | is not a bird | Bat
insect | the ant | the spider | is an insect | Ant
not-insect | the ant | the spider | is not an insect | Spider
prime | the number seven | the number nine | is prime | Seven
not-prime | the number seven | the number nine | is not prime | Nine
landlocked | Bolivia | Ecuador | is landlocked | Bolivia
not-landlocked | Bolivia | Ecuador | is not landlocked | Ecuador
"""

# id | statement | answer
YESNO = """
whale-mammal | a whale is a mammal | Yes
whale-not-mammal | a whale is not a mammal | No
tuna-mammal | a tuna is a mammal | No
tuna-not-mammal | a tuna is not a mammal | Yes
spider-insect | a spider is an insect | No
spider-not-insect | a spider is not an insect | Yes
beetle-insect | a beetle is an insect | Yes
beetle-not-insect | a beetle is not an insect | No
sun-star | the Sun is a star | Yes
sun-not-star | the Sun is not a star | No
moon-star | the Moon is a star | No
moon-not-star | the Moon is not a star | Yes
"""

# id | kind | another word for the kind | animal | answer
ANIMAL = """
baby-horse | baby | young | horse | Foal
female-horse | female | female | horse | Mare
male-horse | male | male | horse | Stallion
baby-sheep | baby | young | sheep | Lamb
female-sheep | female | female | sheep | Ewe
male-sheep | male | male | sheep | Ram
baby-pig | baby | young | pig | Piglet
female-pig | female | female | pig | Sow
male-pig | male | male | pig | Boar
baby-chicken | baby | young | chicken | Chick
female-chicken | female | female | chicken | Hen
male-chicken | male | male | chicken | Rooster
baby-swan | baby | young | swan | Cygnet
male-swan | male | male | swan | Cob
baby-goose | baby | young | goose | Gosling
male-goose | male | male | goose | Gander
baby-kangaroo | baby | young | kangaroo | Joey
female-fox | female | female | fox | Vixen
"""

# id | noun phrase | answer
FIRST = """
first-on-moon | the first person to walk on the Moon | Neil Armstrong
second-on-moon | the second person to walk on the Moon | Buzz Aldrin
first-human-space | the first human in space | Yuri Gagarin
first-woman-space | the first woman in space | Valentina Tereshkova
first-american-space | the first American in space | Alan Shepard
first-us-president | the first president of the United States | George Washington
second-us-president | the second president of the United States | John Adams
third-us-president | the third president of the United States | Thomas Jefferson
first-roman-emperor | the first Roman emperor | Augustus
second-roman-emperor | the second Roman emperor | Tiberius
first-woman-pm-uk | the first female prime minister of the United Kingdom | Margaret Thatcher
second-woman-pm-uk | the second female prime minister of the United Kingdom | Theresa May
first-pm-india | the first prime minister of India | Jawaharlal Nehru
first-president-russia | the first president of Russia | Boris Yeltsin
first-woman-nobel | the first woman to win a Nobel Prize | Marie Curie
first-south-pole | the first explorer to reach the South Pole | Roald Amundsen
first-un-secretary | the first Secretary-General of the United Nations | Trygve Lie
second-un-secretary | the second Secretary-General of the United Nations | Dag Hammarskjöld
"""

# id | counted things | container | answer
UNIT = """
seconds-minute | seconds | a minute | 60
seconds-hour | seconds | an hour | 3600
hours-day | hours | a day | 24
hours-week | hours | a week | 168
days-week | days | a week | 7
days-leap-year | days | a leap year | 366
days-common-year | days | a common year | 365
years-decade | years | a decade | 10
years-century | years | a century | 100
inches-foot | inches | a foot | 12
feet-yard | feet | a yard | 3
feet-mile | feet | a mile | 5280
yards-mile | yards | a mile | 1760
ounces-pound | ounces | a pound | 16
pounds-stone | pounds | a stone | 14
bits-byte | bits | a byte | 8
bits-nibble | bits | a nibble | 4
millimetres-centimetre | millimetres | a centimetre | 10
millimetres-metre | millimetres | a metre | 1000
centimetres-metre | centimetres | a metre | 100
"""

FACTS: dict[str, list[Fact]] = {
    "capital": table("capital", "country", CAPITAL),
    "capital_of": table("capital_of", "city", CAPITAL_OF),
    "author": table("author", "book", AUTHOR),
    "symbol": table("symbol", "element", SYMBOL),
    "element": table("element", "symbol", ELEMENT),
    "year": events("year", YEAR),
    "record": table("record", "id most alt noun plural place", RECORD),
    "inventor": table("inventor", "thing", INVENTOR),
    "discoverer": table("discoverer", "thing was", DISCOVERER),
    "currency": table("currency", "country", CURRENCY),
    "river": table("river", "city", RIVER),
    "painter": table("painter", "work", PAINTER),
    "artwork": table("artwork", "artist scene", ARTWORK),
    "composer": table("composer", "work", COMPOSER),
    "language": table("language", "country", LANGUAGE),
    "planet": table("planet", "id pred", PLANET),
    "choice": table("choice", "id a b pred", CHOICE),
    "yesno": table("yesno", "id claim", YESNO),
    "animal": table("animal", "id kind alt animal", ANIMAL),
    "first": table("first", "id person", FIRST),
    "unit": table("unit", "id things whole", UNIT),
}
