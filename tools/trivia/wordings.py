"""The ways a person may ask for each family's facts.

``trained`` wordings are seen with many facts; ``reserved`` ones with none, so that the
``held_out_wording`` split measures paraphrase rather than memory. Both lists were fixed
before any model was trained. Common openings ("Remind me", "Any idea") are reserved in
some families and trained in others: what a model may know is the opening, never the
opening together with what the family asks for. ``CARRIERS`` wrap plain questions in the small talk people
put around them, which a model must learn to look through; they extend ``trained`` only.

Slots are filled from ``facts.py``; a result that starts with a slot is capitalised.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Wordings:
    """The wordings of one family, by the split they may feed."""

    trained: tuple[str, ...]
    reserved: tuple[str, ...]


# ``{q}`` is the question with a lower-case first letter, ``{Q}`` the question as it is.
CARRIERS: tuple[str, ...] = (
    "Quick question: {q}",
    "Hey, {q}",
    "Trivia: {Q}",
    "Pub quiz question: {Q}",
    "Just curious, {q}",
    "My homework asks: {Q}",
    "{Q} Short answer, please.",
    "{Q} Thanks!",
    "I forgot, {q}",
    "Sorry, {q}",
    "Help me out here: {q}",
    "Okay, so {q}",
    "Please answer this: {Q}",
    "Next one: {Q}",
    "{Q} I can never remember.",
    "Can you answer this? {Q}",
    "Question for you: {q}",
    "Hi! {Q}",
    "One more: {q}",
    "{Q} Just the answer.",
)


def _wordings(trained: str, reserved: str) -> Wordings:
    """Split two blocks of lines into a family's wordings."""
    return Wordings(tuple(trained.strip().splitlines()), tuple(reserved.strip().splitlines()))


WORDINGS: dict[str, Wordings] = {
    "capital": _wordings(
        """
What is the capital of {country}?
What's the capital of {country}?
what's the capital of {country} again
Which city is the capital of {country}?
Name the capital of {country}.
Tell me the capital city of {country}.
capital of {country}?
{country_bare} capital city
The capital of {country} is what?
The capital city of {country} is called what?
{country}: what is its capital?
What city is the seat of government of {country}?
Where is the government of {country} based?
In which city does the government of {country} sit?
Which city is {country_s} capital?
What is {country_s} capital city?
Do you know the capital of {country}?
Can you name {country_s} capital?
I can't remember which city is the capital of {country}.
Give me the name of the capital of {country}.
What is the name of the capital city of {country}?
State the capital of {country}, please.
If I visit the capital of {country}, which city am I in?
Which city is marked as the capital of {country} on a map?
What do they call the capital of {country}?
The national capital of {country}, what is it?
Please tell me which city {country} has as its capital.
Which city does {country} have as its capital?
The seat of government of {country} is in which city?
Looking for the capital of {country}. Any idea?
Complete the sentence: the capital of {country} is ...
Any idea what {country_s} capital is called?
capital city {country_bare}
Do you happen to know which city is the seat of government in {country}?
I need the name of {country_s} capital city.
Would you tell me the name of the capital of {country}?
What city is the capital of {country}?
What's {country_s} capital?
{country_bare} capital?
Which city acts as the capital of {country}?
The government of {country} sits in what city?
From which city is {country} governed?
Which capital city does {country} have?
The capital of {country}, please.
""",
        """
Which city is the national capital of {country}?
Remind me of {country_s} capital.
{country} has which city as its capital?
For my geography homework: what city is the capital of {country}?
What city is home to the government of {country}?
Could you tell me what the capital of {country} is?
I'd like to know the capital of {country}.
For a quiz: which city serves as the capital of {country}?
""",
    ),
    "capital_of": _wordings(
        """
Which country's capital is {city}?
What country's capital is {city}?
{city} is the capital of which country?
{city} is the capital of what country?
Of which country is {city} the capital?
What country is {city} the capital of?
Which country has {city} as its capital?
What country has the capital {city}?
Name the country whose capital is {city}.
Tell me which country has {city} as capital.
country with capital {city}
{city}, a capital: of which country?
Which nation has {city} as its capital city?
Which nation's capital city is {city}?
Could you tell me which country {city} is the capital of?
I'd like to know which country has {city} for a capital.
For a quiz: {city} is the capital city of which country?
I know {city} is a capital, but of which country?
The country whose capital is {city} is called what?
Give me the country that has {city} as its capital.
what country is {city} the capital of again
Which state is governed from {city}?
The government of which country sits in {city}?
Which country's government has its seat in {city}?
Identify the country whose capital city is {city}.
In which country is {city} the capital?
In which country is {city} the seat of government?
{city} serves as capital for which country?
Complete the sentence: {city} is the capital of ...
{city} is which country's capital?
Please name the nation whose capital is {city}.
Remind me which country's capital is {city}.
I need the name of the country with {city} as its capital.
Whose capital is {city}?
{city} is the capital of where?
Of which nation is {city} the capital city?
To which country does the capital {city} belong?
What is the name of the country with {city} as its capital?
Which land has {city} as its capital?
country whose capital is {city}
From {city} which country is governed?
""",
        """
For which country is {city} the capital?
Can you name the country that has {city} as its capital city?
{city} is the capital city of what nation?
Any idea which country's capital {city} is?
{city} is the seat of government of which country?
What is the country whose capital is {city}?
Do you know which country {city} is the capital of?
I can't remember the country that has {city} as its capital.
""",
    ),
    "author": _wordings(
        """
Who wrote {book}?
Who is the author of {book}?
Who's the author of {book}?
Name the author of {book}.
Tell me who wrote {book}.
author of {book}?
{book} author
{book} was written by whom?
{book} was written by which author?
By whom was {book} written?
The author of {book} is who?
Could you tell me who wrote {book}?
I'd like to know who wrote {book}.
{book}: who wrote it?
{book}: who is the author?
For a quiz: which writer wrote {book}?
Which author wrote {book}?
Which novelist wrote {book}?
Which writer gave us {book}?
Whose novel is {book}?
Whose book is {book}?
Do you know who the author of {book} is?
I can't remember who wrote {book}.
who wrote {book} again
What is the name of the author of {book}?
What's the name of the writer of {book}?
Can you name the writer of {book}?
Who penned {book}?
Who is {book} by?
The novel {book} is by which author?
I'm reading {book}. Who wrote it?
Whose name is on the cover of {book}?
The book {book}, who is the writer?
Please tell me the author of the novel {book}.
Remind me who wrote {book}.
Do you happen to know which author wrote {book}?
Can you tell me who penned {book}?
What author wrote {book}?
Who authored {book}?
Who is the writer of {book}?
Who was {book} written by?
Which author is known for {book}?
Who is the creator of {book}?
{book}, by whom?
Who wrote the book {book}?
Who wrote the novel called {book}?
""",
        """
Who was the author of the book {book}?
I need the name of the author of {book}.
Which person wrote the novel {book}?
{book} is a book by whom?
The writer of {book} was who?
Any idea who the writer of {book} was?
Complete the sentence: {book} was written by ...
Give me the name of the person who wrote {book}.
""",
    ),
    "symbol": _wordings(
        """
What is the chemical symbol for {element}?
What's the chemical symbol of {element}?
what's the symbol for {element} again
Which chemical symbol stands for {element}?
Name the chemical symbol of {element}.
Tell me the symbol for {element}.
chemical symbol for {element}?
{element} chemical symbol
symbol of {element}
The chemical symbol for {element} is what?
I'd like to know the chemical symbol of {element}.
{element}: what is its chemical symbol?
For a quiz: which letters stand for {element} in chemistry?
How is {element} written in the periodic table?
How is {element} abbreviated in the periodic table?
What is the periodic table symbol for {element}?
What letter or letters represent {element}?
Which symbol represents {element} in a formula?
What does a chemist write for {element}?
How do chemists abbreviate {element}?
What abbreviation is used for the element {element}?
Do you know the symbol of the element {element}?
I can't remember the symbol for {element}.
Give the chemical symbol of the element {element}.
What is {element_s} symbol?
In chemistry, what stands for {element}?
Under which symbol do I find {element} in the periodic table?
Complete the sentence: the chemical symbol of {element} is ...
Please tell me how {element} is written in chemistry.
{element} has which chemical symbol?
Write the symbol for {element}.
Any idea what the abbreviation for {element} is?
The element {element} has what symbol?
Remind me of the chemical symbol for {element}.
I need the symbol of {element}.
What symbol does {element} have?
What is the symbol for the element {element}?
{element} abbreviation in chemistry
What is {element} on the periodic table?
How is {element} denoted in chemistry?
Which abbreviation stands for {element}?
What's {element} in chemical notation?
As a chemical symbol, what is {element}?
""",
        """
Which symbol is used for {element}?
Do you happen to know {element_s} chemical symbol?
What is the abbreviation for {element} in the periodic table?
How do you write {element} as a chemical symbol?
In the periodic table, which symbol does {element} have?
Which letters are used for the element {element}?
Can you give me {element_s} chemical symbol?
Could you tell me what the symbol of {element} is?
""",
    ),
    "element": _wordings(
        """
Which element has the symbol {symbol}?
What element has the chemical symbol {symbol}?
Which chemical element is written {symbol}?
Name the element with the symbol {symbol}.
Tell me which element {symbol} is.
element with symbol {symbol}?
{symbol} which element
{symbol}: which element is it?
What does the chemical symbol {symbol} stand for?
What does {symbol} stand for in the periodic table?
What does {symbol} mean in chemistry?
The symbol {symbol} stands for which element?
{symbol} is the symbol of which element?
{symbol} is the chemical symbol for what?
Could you tell me which element {symbol} stands for?
I'd like to know which element has the symbol {symbol}.
Which element does the symbol {symbol} represent?
what element is {symbol} again
Can you name the element whose symbol is {symbol}?
I can't remember which element {symbol} stands for.
Give the name of the element {symbol}.
Which element is shown as {symbol} in the periodic table?
In a formula, which element is {symbol}?
Of which element is {symbol} the chemical symbol?
Whose chemical symbol is {symbol}?
What is the name of the element with the symbol {symbol}?
Complete the sentence: {symbol} is the symbol of ...
Please tell me what {symbol} stands for as a chemical symbol.
In the periodic table I see {symbol}. Which element is that?
Identify the chemical element {symbol}.
The element abbreviated as {symbol} is called what?
Do you happen to know what {symbol} stands for in chemistry?
I need the name of the element with the chemical symbol {symbol}.
What is {symbol} on the periodic table?
What's {symbol} in chemistry?
What substance has the symbol {symbol}?
{symbol} is short for which element?
What chemical element does {symbol} stand for?
Which element goes by the symbol {symbol}?
{symbol} represents what element?
""",
        """
What element is represented by {symbol}?
Remind me which element has the symbol {symbol}.
Which element's symbol is {symbol}?
{symbol} stands for which chemical element?
Any idea which element is written as {symbol}?
What is the element {symbol} called?
For a quiz: which element is abbreviated {symbol}?
Do you know what element {symbol} is?
""",
    ),
    "year": _wordings(
        """
When {did}?
In what year {did}?
In which year {did}?
What year {did}?
what year was it when {past}
Name the year in which {past}.
Tell me when {past}.
Could you tell me the year {past}?
I'd like to know when {past}.
What is the year of {event}?
year of {event}
date of {event}?
{event}: which year?
{past} in which year?
{past} in what year?
The year {past} is which one?
For a quiz: when {did}?
Give the year of {event}.
Do you know when {past}?
Do you know the year of {event}?
Can you tell me in which year {past}?
{event} happened in which year?
{event} took place in what year?
When was {event}?
When did {event} take place?
Which year saw {event}?
Which year is remembered for {event}?
What year do the history books give for {event}?
I can't remember the year of {event}.
I forgot when {past}.
What year was {event}?
{event}, what year was that?
In history class: {event} dates from which year?
On what date in history, just the year, {did}?
Remind me when {past}.
I need the year in which {past}.
When exactly {did}?
{event}: when?
{event}, the year please
When was it that {past}?
What year marks {event}?
Which year marks {event}?
In what year was {event}?
what year {did} again
Tell me the year of {event}.
""",
        """
What was the year of {event}?
{past} when?
In which year did {event} take place?
Any idea what year {past}?
For my history homework: what year {did}?
Would you know the date of {event}?
Please give me the year when {past}.
Complete the sentence: {past} in the year ...
""",
    ),
    "record": _wordings(
        """
What is the {most} {noun} {place}?
What's the {alt} {noun} {place}?
what's the {most} {noun} {place} again
Which {noun} is the {most} {place}?
Which {noun} {place} is the {alt}?
Which is the {most} {noun} {place}?
Name the {most} {noun} {place}.
Tell me the {alt} {noun} {place}.
{most} {noun} {place}?
name of the {alt} {noun} {place}
The {most} {noun} {place} is what?
The {most} {noun} {place} is called what?
Could you tell me what the {most} {noun} {place} is?
I'd like to know which {noun} is the {most} {place}.
{plural} {place}: which one is the {most}?
For a quiz: which is the {most} of all {plural} {place}?
Of all the {plural} {place}, which is the {most}?
Among the {plural} {place}, which one is {alt}?
What {noun} holds the record as the {most} {place}?
Which {noun} holds the record for being {most} {place}?
Do you know the {alt} {noun} {place}?
I can't remember which {noun} is the {most} {place}.
What is the name of the {most} {noun} {place}?
Out of all {plural} {place}, name the {most}.
No {noun} {place} beats it: what is the {most} one?
Which {noun} ranks as the {most} {place}?
What {noun} is considered the {alt} {place}?
The title of {most} {noun} {place} goes to which one?
Please tell me which of the {plural} {place} is the {most}.
Complete the sentence: the {most} {noun} {place} is the ...
Any idea which {noun} {place} is the {most}?
In the record book, what is listed as the {most} {noun} {place}?
State the {most} {noun} {place}, please.
Remind me what the {most} {noun} {place} is called.
Do you happen to know which {noun} is {most} {place}?
Which of the {plural} {place} is {alt}?
What {noun} {place} is the {most}?
What would be the {alt} {noun} {place}?
{place}, which {noun} is the {alt}?
{place}, what is the {most} {noun}?
Which {noun} is {most} of all {place}?
Tell me which {noun} {place} is the {most}.
the {most} of all {plural} {place}
""",
        """
Which {noun} would you call the {most} {place}?
I need the name of the {most} {noun} {place}.
Which one of all the {plural} {place} is the {most}?
What do we call the {most} {noun} {place}?
If you compare all {plural} {place}, which is {most}?
Which {noun} has the record of {most} {place}?
Give me the name of the {most} {noun} {place}.
Can you name the {most} {noun} {place}?
""",
    ),
    "inventor": _wordings(
        """
Who invented {thing}?
Who was the inventor of {thing}?
Who's the inventor of {thing}?
Name the inventor of {thing}.
Tell me who invented {thing}.
inventor of {thing}?
{thing_bare} inventor
{thing} was invented by whom?
By whom was {thing} invented?
The inventor of {thing} is who?
Could you tell me who invented {thing}?
{thing}: who invented it?
{thing}: who is the inventor?
Which person invented {thing}?
Which inventor created {thing}?
Whose invention is {thing}?
Whose invention was {thing}?
Who came up with {thing}?
Who had the idea for {thing}?
Who is credited with inventing {thing}?
Who is credited with the invention of {thing}?
I can't remember who invented {thing}.
who invented {thing} again
What is the name of the inventor of {thing}?
Give me the name of the person who invented {thing}.
Can you name the person behind {thing}?
The invention of {thing} is the work of whom?
To whom do we owe {thing}?
Who created {thing}?
Who developed {thing}?
Who thought up {thing}?
Complete the sentence: {thing} was invented by ...
Please tell me whose invention {thing} was.
Any idea who thought of {thing}?
Remind me who invented {thing}.
I need the name of the inventor of {thing}.
Can you tell me who created {thing}?
What inventor came up with {thing}?
Who is behind the invention of {thing}?
Who is responsible for inventing {thing}?
Who devised {thing}?
Who made the invention of {thing}?
{thing}: whose invention?
Who is known for inventing {thing}?
Who first came up with the idea of {thing}?
""",
        """
Who was it that invented {thing}?
Do you happen to know the inventor of {thing}?
Which person came up with {thing}?
{thing} is the invention of whom?
Who gets the credit for inventing {thing}?
I'd like to know who invented {thing}.
For a quiz: which inventor gave us {thing}?
Do you know who came up with {thing}?
""",
    ),
    "discoverer": _wordings(
        """
Who discovered {thing}?
Who was the discoverer of {thing}?
Who's the discoverer of {thing}?
Name the discoverer of {thing}.
Tell me who discovered {thing}.
discoverer of {thing}?
{thing_bare} discoverer
{thing} discovered by
{thing}: who made the discovery?
{thing} {was} discovered by whom?
By whom {was} {thing} discovered?
The discoverer of {thing} is who?
Could you tell me who discovered {thing}?
I'd like to know who discovered {thing}.
For a quiz: which scientist or explorer discovered {thing}?
Which person discovered {thing}?
Whose discovery {was} {thing}?
Who found {thing}?
Who first found {thing}?
Who was the first to find {thing}?
Who made the discovery of {thing}?
Who is credited with discovering {thing}?
Who is credited with the discovery of {thing}?
Do you know who first discovered {thing}?
who discovered {thing} again
What is the name of the discoverer of {thing}?
Give me the name of the person who discovered {thing}.
Can you name the person behind the discovery of {thing}?
To whom do we owe the discovery of {thing}?
The discovery of {thing} was made by whom?
Who is known for the discovery of {thing}?
Who became famous for discovering {thing}?
Complete the sentence: {thing_s} discoverer was ...
Do you happen to know the discoverer of {thing}?
I need the name of the person who found {thing}.
Can you tell me who made the discovery of {thing}?
Who first discovered {thing}?
Who uncovered {thing}?
Who is responsible for the discovery of {thing}?
Who is behind the discovery of {thing}?
Who is known for discovering {thing}?
What is the name of the person who first found {thing}?
Who do we thank for discovering {thing}?
{thing_bare}: discovered by which person?
""",
        """
Who was it that discovered {thing}?
Remind me who discovered {thing}.
Which person first discovered {thing}?
{thing}: whose discovery?
Who gets the credit for discovering {thing}?
I can't remember who discovered {thing}.
Please tell me whose discovery {thing} {was}.
Any idea who found {thing}?
""",
    ),
    "currency": _wordings(
        """
What is the currency of {country}?
What's the currency of {country}?
what's the currency in {country} again
Which currency is used in {country}?
What currency is used in {country}?
What currency does {country} use?
Name the currency of {country}.
Tell me the currency of {country}.
currency of {country}?
{country_bare} currency
{country} money name
The currency of {country} is what?
The currency used in {country} is called what?
Could you tell me which currency {country} uses?
I'd like to know the currency of {country}.
{country}: what is its currency?
For a quiz: what is the official currency of {country}?
What money is used in {country}?
What money do people use in {country}?
What do people pay with in {country}?
Which money do I need in {country}?
I'm travelling to {country}. Which currency do I need?
In which currency do you pay in {country}?
Prices in {country} are given in which currency?
What is {country_s} currency?
What is {country_s} national currency?
Do you know the currency of {country}?
I can't remember which currency {country} has.
What is the name of the money used in {country}?
Which currency is legal tender in {country}?
What is the monetary unit of {country}?
Please tell me what currency they have in {country}.
Which currency should I exchange my money for in {country}?
Any idea what money they use in {country}?
Remind me of {country_s} currency.
Do you happen to know what currency is used in {country}?
I need the name of {country_s} currency.
What do you pay with in {country}?
What cash do I need in {country}?
Which currency do they use in {country}?
What kind of currency is there in {country}?
What unit of money is used in {country}?
{country_s} currency?
If I go to {country}, what money should I take?
What currency is official in {country}?
the money of {country}
""",
        """
What is the official money of {country}?
Which currency does {country} have?
What is the money in {country} called?
If I shop in {country}, what currency do I pay in?
What kind of money does {country} use?
Complete the sentence: the currency of {country} is the ...
Give me the name of the currency of {country}.
Can you name the money of {country}?
""",
    ),
    "river": _wordings(
        """
Which river flows through {city}?
What river flows through {city}?
what river is {city} on again
On which river does {city} lie?
On what river is {city}?
Which river is {city} on?
{city} lies on which river?
{city} is on which river?
{city} is located on what river?
{city}: which river flows through it?
Name the river that flows through {city}.
Name the river of {city}.
Tell me which river runs through {city}.
river in {city}?
{city} river
The river in {city} is called what?
The river that runs through {city} is what?
For a quiz: on the banks of which river is {city}?
Which river has {city} on its banks?
What river passes through {city}?
Which river crosses {city}?
The bridges of {city} cross which river?
Do you know the river that goes through {city}?
Can you name the river {city} is built on?
I can't remember which river {city} is on.
What is the name of the river in {city}?
What's the river in {city} called?
Give me the name of the river that runs through {city}.
Which river would a boat in {city} be on?
{city} stands on the banks of what river?
Through {city} flows which river?
Complete the sentence: {city} lies on the river ...
Please tell me the river on which {city} stands.
Any idea what river goes through {city}?
Remind me which river {city} lies on.
Do you happen to know what river flows through {city}?
What river runs through {city}?
The city of {city} is on which river?
Which river does {city} lie on?
What is the river that flows through {city}?
Which river goes through the city of {city}?
What waterway runs through {city}?
Along which river does {city} lie?
{city} sits on what river?
Which river passes through the middle of {city}?
""",
        """
Which river runs through {city}?
I need the name of the river in {city}.
{city} was built on which river?
What is {city_s} river called?
By which river is {city} situated?
Which river can I see in {city}?
Could you tell me which river {city} stands on?
I'd like to know which river flows through {city}.
""",
    ),
    "painter": _wordings(
        """
Who painted {work}?
Who is the painter of {work}?
Who's the artist behind {work}?
Name the painter of {work}.
Tell me who painted {work}.
painter of {work}?
{work_bare} painter
{work}: who painted it?
{work}: who is the artist?
{work} was painted by whom?
{work} was painted by which artist?
By whom was {work} painted?
The painter of {work} is who?
The artist who painted {work} is who?
Could you tell me who painted {work}?
I'd like to know who painted {work}.
For a quiz: which painter made {work}?
Which artist painted {work}?
Which painter created {work}?
Whose painting is {work}?
Whose work is {work}?
who painted {work} again
What is the name of the artist who painted {work}?
Give me the name of the painter of {work}.
Can you name the artist of {work}?
{work} is a painting by whom?
The painting {work} is by which artist?
The picture called {work}, who made it?
Who created the painting {work}?
Who is the picture {work} by?
In the museum I saw {work}. Who painted it?
Complete the sentence: {work} was painted by ...
Any idea which painter did {work}?
Remind me who painted {work}.
I need the name of the painter of {work}.
Can you tell me who made the painting {work}?
What artist painted {work}?
Who did the painting {work}?
{work} was made by which painter?
{work}: whose painting is it?
{work_bare} artist
artist of {work}
Who is responsible for the painting {work}?
Who made {work}?
Who was {work} painted by?
""",
        """
Who was the artist of {work}?
Do you happen to know which artist painted {work}?
Which person painted the picture {work}?
{work} is the work of which painter?
Whose picture is {work}?
Do you know who the painter of {work} is?
I can't remember who painted {work}.
Please tell me the artist of the painting {work}.
""",
    ),
    "artwork": _wordings(
        """
Which painting by {artist} shows {scene}?
What painting by {artist} shows {scene}?
Which picture by {artist} shows {scene}?
Name the painting by {artist} that shows {scene}.
Tell me which painting by {artist} shows {scene}.
{artist} painting of {scene}?
{artist} painted {scene}: what is it called?
{artist} painted {scene} in which picture?
In which painting did {artist} show {scene}?
In which picture did {artist} paint {scene}?
What is the title of the picture in which {artist} painted {scene}?
What is the painting by {artist} with {scene} called?
The painting by {artist} of {scene} is called what?
The picture where {artist} shows {scene} has what title?
Could you tell me the title of the painting by {artist} of {scene}?
I'd like to know which picture by {artist} has {scene}.
For a quiz: which work by {artist} depicts {scene}?
Which work of {artist} depicts {scene}?
Which famous work by {artist} portrays {scene}?
What did {artist} call the painting of {scene}?
Do you know the painting by {artist} with {scene}?
Can you name the picture by {artist} that depicts {scene}?
I can't remember which painting by {artist} has {scene}.
what's that {artist} painting with {scene} again
Which of the paintings of {artist} shows {scene}?
Which of the works by {artist} has {scene} in it?
{scene}: which painting by {artist} is that?
{scene} can be seen in which painting by {artist}?
{scene}, painted by {artist}. What is the title?
Please name the painting in which {artist} shows {scene}.
Do you happen to know the title of the painting by {artist} with {scene}?
I need the name of the picture in which {artist} painted {scene}.
Can you tell me what the painting of {scene} by {artist} is called?
{artist}: which painting shows {scene}?
What is the famous picture of {scene} by {artist}?
Which picture by {artist} is of {scene}?
What's the title of the painting of {scene} by {artist}?
What did {artist} paint that shows {scene}?
""",
        """
What picture by {artist} depicts {scene}?
Remind me which painting by {artist} shows {scene}.
Which artwork by {artist} shows {scene}?
What is the name of the painting of {scene} by {artist}?
{artist} depicted {scene} in which painting?
Any idea what the picture of {scene} by {artist} is called?
Complete the sentence: {artist} painted {scene} in the work called ...
Give the title of the work where {artist} painted {scene}.
""",
    ),
    "composer": _wordings(
        """
Who composed {work}?
Who is the composer of {work}?
Who's the composer of {work}?
Name the composer of {work}.
Tell me who composed {work}.
composer of {work}?
{work_bare} composer
{work}: who composed it?
{work}: who is the composer?
{work} was composed by whom?
{work} was written by which composer?
By whom was {work} composed?
The composer of {work} is who?
For a quiz: which composer wrote {work}?
Which composer gave us {work}?
Which musician composed {work}?
Who wrote the music of {work}?
Who wrote the music for {work}?
Whose composition is {work}?
Whose music do we hear in {work}?
Do you know who the composer of {work} is?
I can't remember who composed {work}.
who composed {work} again
What is the name of the composer of {work}?
Give me the name of the person who composed {work}.
{work} is a piece by whom?
The music of {work} is by which composer?
At a concert they played {work}. Who composed it?
Tonight I will hear {work}. Who is it by?
Complete the sentence: {work} was composed by ...
Please tell me which composer {work} is by.
Any idea who wrote the notes of {work}?
{work}, who is its composer?
Remind me who composed {work}.
Do you happen to know which composer wrote {work}?
I need the name of the composer of {work}.
What composer wrote {work}?
Who created {work}?
{work} music by
{work}: whose music is it?
Who is responsible for the music of {work}?
Who was {work} composed by?
Which composer is known for {work}?
Which composer created {work}?
Who put {work} to paper?
""",
        """
Who was the composer behind {work}?
Which person composed the music of {work}?
{work} is by which composer?
Can you tell me who wrote the music for {work}?
Whose work is the music of {work}?
Can you name the composer behind {work}?
Could you tell me who composed {work}?
I'd like to know who composed {work}.
""",
    ),
    "language": _wordings(
        """
What language is spoken in {country}?
Which language is spoken in {country}?
what language do they speak in {country} again
What language do people speak in {country}?
Which language do the people of {country} speak?
What is the official language of {country}?
What's the official language in {country}?
Name the official language of {country}.
Tell me the language of {country}.
official language of {country}?
language of {country}
{country_bare} language
The official language of {country} is what?
The language spoken in {country} is called what?
Could you tell me what language is spoken in {country}?
I'd like to know which language they speak in {country}.
{country}: what language is spoken there?
What is {country_s} official language?
What is {country_s} main language?
What is the main language of {country}?
What is the national language of {country}?
Can you name the language of {country}?
I can't remember which language {country} has.
Give me the official language of {country}.
I'm travelling to {country}. Which language should I learn?
In what language are the newspapers of {country} mostly written?
In which language are laws written in {country}?
Which language has official status in {country}?
Most people in {country} speak which language?
What tongue is spoken in {country}?
Complete the sentence: the people of {country} speak ...
Please tell me the main language spoken in {country}.
Any idea which language they use in {country}?
Remind me what language they speak in {country}.
Do you happen to know the official language of {country}?
What do people speak in {country}?
Which language is the official one in {country}?
What's spoken in {country}?
What language would I hear in {country}?
In {country}, what language do people speak?
What is {country_s} language?
What language do the inhabitants of {country} speak?
{country} has which official language?
language spoken in {country}
""",
        """
What is the language spoken in {country}?
I need the name of {country_s} official language.
Which language is used in {country}?
What is the language of {country} called?
People in {country} speak what language?
Which is the main language in {country}?
For a quiz: which language is official in {country}?
Do you know what people speak in {country}?
""",
    ),
    "planet": _wordings(
        """
Which planet {pred}?
What planet {pred}?
what planet {pred} again
Which planet of the Solar System {pred}?
Which planet in our solar system {pred}?
Name the planet that {pred}.
Tell me which planet {pred}.
planet that {pred}?
planet which {pred}
The planet that {pred} is called what?
The planet which {pred} is what?
Could you tell me which planet {pred}?
I'd like to know which planet {pred}.
For a quiz: which planet {pred}?
Which one of the eight planets {pred}?
Of the eight planets, which one {pred}?
Of all the planets around the Sun, which {pred}?
Among the planets, which one {pred}?
Do you know which planet {pred}?
Can you name the planet that {pred}?
I can't remember which planet {pred}.
Give me the name of the planet that {pred}.
What is the name of the planet that {pred}?
I'm thinking of a planet that {pred}. Which one?
In astronomy, what planet {pred}?
In the Solar System, it {pred}. Which planet is it?
Identify the planet which {pred}.
Planets: which one {pred}?
It {pred}. What planet am I talking about?
What do we call the planet that {pred}?
Which of our planets {pred}?
Remind me which planet {pred}.
I need the name of the planet which {pred}.
Can you tell me the planet that {pred}?
What is the planet that {pred}?
What's the planet which {pred}?
Which of the planets {pred}?
Tell me the name of the planet that {pred}.
Around our Sun, which planet {pred}?
Which world in our solar system {pred}?
The planet that {pred}, please.
It is a planet and it {pred}. Name it.
""",
        """
Which is the planet that {pred}?
Do you happen to know what planet {pred}?
Which one of the planets {pred}?
For my astronomy homework: what planet of the Solar System {pred}?
Out of all eight planets, which {pred}?
Please tell me the planet which {pred}.
Any idea what planet {pred}?
Complete the sentence: the planet that {pred} is ...
""",
    ),
    "choice": _wordings(
        """
Which {pred}: {a} or {b}?
Which one {pred}: {a} or {b}?
Which of the two {pred}, {a} or {b}?
Which of {a} and {b} {pred}?
what's the one that {pred}, {a} or {b}
{a} or {b}: which {pred}?
{a} or {b}, which one {pred}?
{a} and {b}: which of them {pred}?
Between {a} and {b}, which {pred}?
Between {a} and {b}, which one {pred}?
Of {a} and {b}, which {pred}?
Of the two, {a} and {b}, which one {pred}?
Tell me which {pred}: {a} or {b}.
Tell me which of {a} and {b} {pred}.
Name the one that {pred}: {a} or {b}.
Choose the one that {pred}: {a} or {b}.
Pick the one which {pred}, {a} or {b}.
For a quiz: which of these {pred}, {a} or {b}?
Which of these {pred}: {a}, {b}?
Do you know which {pred}, {a} or {b}?
I can't remember which one {pred}, {a} or {b}.
Only one of {a} and {b} {pred}. Which one?
One of these {pred}: {a} or {b}. Which?
If I compare {a} with {b}, which one {pred}?
Two options, {a} and {b}. Which {pred}?
Given {a} and {b}, say which one {pred}.
{b} or {a}: which one {pred}?
Between {b} and {a}, which of them {pred}?
Complete the sentence: of {a} and {b}, the one that {pred} is ...
Please tell me which {pred}, {b} or {a}.
Any idea which of {b} and {a} {pred}?
Do you happen to know which one {pred}: {a} or {b}?
I need to know which {pred}: {b} or {a}.
Can you tell me which of the two {pred}, {b} or {a}?
Is it {a} or {b} that {pred}?
Is {a} or {b} the one that {pred}?
Say which of the two {pred}: {b} or {a}.
Which {pred}? Choose from {a} and {b}.
""",
        """
Out of {a} and {b}, which {pred}?
Remind me which of {a} and {b} {pred}.
Which is the one that {pred}, {a} or {b}?
{a}, {b}: which of the two {pred}?
Say which {pred}: {a} or {b}.
Can you say which of {a} and {b} {pred}?
Could you tell me which one {pred}, {a} or {b}?
I'd like to know which {pred}, {a} or {b}.
""",
    ),
    "yesno": _wordings(
        """
Is it true that {claim}?
Is it correct that {claim}?
Is it right that {claim}?
Is it a fact that {claim}?
is it true {claim}
Yes or no: {claim}?
Yes or no, is it true that {claim}?
{claim}, yes or no?
{claim}. Answer with yes or no.
{claim}: is that true?
{claim}: is this correct?
{claim}. Is that right?
{claim}. Is this statement true?
Is this statement true: {claim}?
Is the following correct: {claim}?
Is the statement that {claim} true?
Is the claim that {claim} right?
Could you tell me if it is true that {claim}?
I'd like to know if it is true that {claim}.
For a quiz, yes or no: {claim}?
Answer yes or no: {claim}.
Answer with yes or no: is it the case that {claim}?
Do you agree that {claim}?
Do scientists agree that {claim}?
Would it be right to say that {claim}?
Can I say that {claim}?
Can one correctly say that {claim}?
My friend says that {claim}. Is that correct?
My teacher told me that {claim}. Is it true?
I read that {claim}. Is it right?
Somebody claims that {claim}. Is the claim true?
Am I right that {claim}?
Am I correct in saying that {claim}?
Please tell me with yes or no if {claim}.
Check this for me: {claim}. Correct?
Is it so that {claim}?
{claim}, true?
{claim}, right?
Is the sentence true: {claim}?
Is it accurate to say that {claim}?
Would you agree that {claim}?
Is this right: {claim}?
Is it the case that {claim}?
""",
        """
Is it the truth that {claim}?
{claim}. Is it correct?
Can you tell me if it is right that {claim}?
I heard that {claim}. Is that true?
Would you say that {claim}?
Is it correct to say that {claim}?
Please answer yes or no: is it true that {claim}?
Is the sentence correct: {claim}?
""",
    ),
    "animal": _wordings(
        """
What is a {kind} {animal} called?
What's a {kind} {animal} called?
what's a {kind} {animal} called again
What do you call a {kind} {animal}?
What do we call a {kind} {animal}?
What do people call a {kind} {animal}?
What is the name for a {kind} {animal}?
What is the word for a {kind} {animal}?
Which word means a {kind} {animal}?
What name is given to a {kind} {animal}?
Name the word for a {kind} {animal}.
Tell me what a {kind} {animal} is called.
{kind} {animal} name?
{kind} {animal} word
name of a {kind} {animal}
A {kind} {animal} is called what?
A {kind} {animal} is known as what?
A {kind} {animal} goes by what name?
Could you tell me what a {kind} {animal} is called?
I'd like to know the name for a {kind} {animal}.
{kind} {animal}: what is it called?
For a quiz: what is the term for a {kind} {animal}?
What is the proper term for a {kind} {animal}?
What is the correct word for a {kind} {animal}?
How do you refer to a {kind} {animal}?
What would a farmer or a zoo keeper call a {kind} {animal}?
Do you know the word for a {kind} {animal}?
Can you give me the name of a {kind} {animal}?
Give me the English word for a {kind} {animal}.
In English, what is a {kind} {animal}?
If an animal is a {kind} {animal}, what is its name?
There is a special word for a {kind} {animal}. Which?
Complete the sentence: a {kind} {animal} is called a ...
Remind me what you call a {kind} {animal}.
Do you happen to know what a {kind} {animal} is called?
Can you tell me the name for a {kind} {animal}?
What is a {alt} {animal} known as?
What's the name for a {alt} {animal}?
What's the word for a {alt} {animal}?
What term is used for a {alt} {animal}?
What word describes a {alt} {animal}?
What is the right word for a {alt} {animal}?
A {alt} {animal} has what special name?
In the animal world, what do you call a {alt} {animal}?
A {alt} {animal}: what do you call it?
Say the word for a {alt} {animal}.
""",
        """
What is the term for a {kind} {animal}?
I need the word for a {kind} {animal}.
What is the special name of a {kind} {animal}?
By what name is a {kind} {animal} known?
What is another word for a {kind} {animal}?
I can't remember what a {kind} {animal} is called.
Please tell me the term for a {kind} {animal}.
Any idea what they call a {kind} {animal}?
""",
    ),
    "first": _wordings(
        """
Who was {person}?
who was {person} again
Name {person}.
Tell me who {person} was.
{person}?
name of {person}
{person} was who?
{person} was called what?
{person}: who was it?
{person}: what was the name?
Could you tell me who {person} was?
I'd like to know who {person} was.
For a quiz: who was {person}?
Which person was {person}?
Who became {person}?
Who is known as {person}?
Who is remembered as {person}?
Who went down in history as {person}?
Who made history as {person}?
Which famous person became {person}?
Do you know who {person} was?
Do you know the name of {person}?
I can't remember who {person} was.
I can't remember the name of {person}.
What is the name of {person}?
What was {person} called?
In the history books, who is listed as {person}?
Whose name goes with the title of {person}?
Identify {person}.
Please tell me the name of {person}.
Any idea who {person} was?
Remind me who {person} was.
I need the name of {person}.
Can you tell me who {person} was?
Who is {person}?
Who's {person}?
Who was it who became {person}?
{person} was which person?
Who holds the title of {person}?
Who do the history books name as {person}?
Tell me the name of {person}.
Whose name should I write down for {person}?
Who got to be {person}?
""",
        """
What was the name of {person}?
Do you happen to know who became {person}?
Who do we remember as {person}?
For my history homework: who became {person}?
Who exactly was {person}?
Complete the sentence: {person} was ...
Give me the name of {person}.
Can you name {person}?
""",
    ),
    "unit": _wordings(
        """
How many {things} are in {whole}?
How many {things} are there in {whole}?
How many {things} does {whole} have?
how many {things} in {whole}
how many {things} are in {whole} again
How many {things} make up {whole}?
How many {things} make {whole}?
{things} in {whole}?
number of {things} in {whole}
{whole} in {things}
{whole} has how many {things}?
{whole} is how many {things}?
{whole} contains how many {things}?
{whole}: how many {things} is that?
What is the number of {things} in {whole}?
What number of {things} makes {whole}?
Tell me how many {things} there are in {whole}.
Tell me the number of {things} in {whole}.
Do you know how many {things} {whole} has?
Can you say how many {things} equal {whole}?
How many {things} equal {whole}?
How many {things} go into {whole}?
How many {things} fit in {whole}?
How many {things} do I need for {whole}?
I can't remember how many {things} make {whole}.
Give the number of {things} in {whole}.
Convert {whole} to {things}.
If I have {whole}, how many {things} is that?
Count the {things} in {whole}: how many?
In {whole} there are how many {things}?
Complete the sentence: the number of {things} in {whole} is ...
Please tell me how many {things} are needed for {whole}.
Any idea how many {things} there are to {whole}?
Do you happen to know the number of {things} in {whole}?
I need to know how many {things} make up {whole}.
Can you tell me how many {things} there are in {whole}?
{whole} consists of how many {things}?
{whole} is made up of how many {things}?
{whole} equals what number of {things}?
How many {things} will I find in {whole}?
{whole} to {things}
{things} contained in {whole}
How many {things} do you get in {whole}?
How many {things} is {whole}?
What is {whole} worth in {things}?
""",
        """
How many {things} does {whole} contain?
Remind me how many {things} are in {whole}.
{whole} equals how many {things}?
What is {whole} in {things}?
How many {things} can you count in {whole}?
Could you tell me how many {things} are in {whole}?
I'd like to know how many {things} {whole} has.
For a quiz: how many {things} are contained in {whole}?
""",
    ),
}
