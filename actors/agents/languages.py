"""Which language a text is in, guessed from its commonest words or its script, and how its syllables are
counted.

Small tables instead of a model: they need no download and give the same answer everywhere. It refuses to
    guess where
the signs are few: the answer is then no language at all.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["LANGUAGES", "Language", "LanguageGuess", "guess_language"]


@dataclass(frozen=True, slots=True)
class Language:
    """What is known about a language.

    Attributes:
        name: English name.
        stop_words: Words that carry no topic.
        vowels: Letters that make syllables.
        reading_ease: (constant, per word in a sentence, per syllable in a word) of its Flesch formula, None
            where there is none.
    """

    name: str
    stop_words: frozenset[str]
    vowels: str
    reading_ease: tuple[float, float, float] | None


@dataclass(frozen=True, slots=True)
class LanguageGuess:
    """A guess.

    Attributes:
        code: ISO 639-1 code, "und" where undetermined.
        name: English name.
        confidence: 0 to 1: how clearly it is ahead of the next best.
    """

    code: str
    name: str
    confidence: float


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_LATIN = "aeiouyàáâãäåæèéêëìíîïòóôõöøùúûüœ"

# Sources of the formulas: en: Flesch 1948; de: Amstad 1978; fr: Kandel and Moles 1958; es: Fernández Huerta
# 1959; it: Vacca and Franchina 1972; nl: Douma 1960; pt: Martins et al. 1996.
LANGUAGES: dict[str, Language] = {
    "en": Language(
        "English",
        _words(
            "a about above after again all also although always am among an and another any are "
            "around as at back be became because been before being below between both but by came can "
            "cannot come could did do does doing done down during each either else enough even ever "
            "every few first for from get go had has have having he her here hers him himself his how "
            "however i if in into is it its itself just last least less like made make many may me "
            "might more most much must my near never next no none nor not nothing now of off often on "
            "once one only or other our out over own per quite rather same see seen several she "
            "should since so some still such than that the their theirs them then there these they "
            "this those though three through thus to together too toward two under until up upon us "
            "very was way we well went were what when where whether which while who whole whom whose "
            "why will with within without would yet you your yours"
        ),
        "aeiouy",
        (206.835, 1.015, 84.6),
    ),
    "de": Language(
        "German",
        _words(
            "aber alle allem allen aller alles als also am an andere anderen auch auf aus bei beim "
            "bereits bin bis bist da dabei dadurch dafür daher damit dann das dass dazu dein dem den "
            "denn der des dessen deutlich dich die dies diese diesem diesen dieser dieses doch dort "
            "du durch ein eine einem einen einer eines er es etwa etwas euch euer für gegen gewesen "
            "hab habe haben hat hatte hatten hier hin hinter ich ihm ihn ihnen ihr ihre ihrem ihren "
            "ihrer im immer in indem ins ist jede jedem jeden jeder jedes jedoch jetzt kann kein "
            "keine keinem keinen keiner können könnte machen man manche mehr mein meine mich mir mit "
            "muss müssen nach nicht nichts noch nun nur ob oder ohne sehr sein seine seinem seinen "
            "seiner seit selbst sich sie sind so sogar solche soll sollte sondern sonst über um und "
            "uns unser unter viel vom von vor während war waren warum was weil welche wenn wer werde "
            "werden wie wieder will wir wird wo wollen worden wurde wurden zu zum zur zwar zwischen"
        ),
        "aeiouyäöü",
        (180.0, 1.0, 58.5),
    ),
    "fr": Language(
        "French",
        _words(
            "à ai ainsi alors après au aucun aussi autre autres aux avant avec avoir beaucoup bien "
            "car ce ceci cela celle celles celui ces cet cette ceux chaque chez comme comment dans de "
            "depuis des deux donc dont du elle elles en encore entre est et étaient était été être eu "
            "eux fait faire fois font il ils je jusque la le les leur leurs lors lorsque lui ma mais "
            "me même mes moi moins mon ne ni nos notre nous on ont ou où par parce pas pendant peu "
            "peut plus plusieurs pour pourquoi quand que quel quelle quelques qui sa sans se sera ses "
            "si son sont sous sur ta te tes toi ton tous tout toute toutes très trop tu un une vers "
            "vos votre vous y"
        ),
        _LATIN,
        (207.0, 1.015, 73.6),
    ),
    "es": Language(
        "Spanish",
        _words(
            "a al algo algunos ante antes aquel aquella así aún aunque bajo bien cada casi como cómo "
            "con contra cual cuando cuál de del desde después donde dos durante e el él ella ellas "
            "ellos en entre era eran es esa esas ese eso esos está están esta estaba estas este esto "
            "estos fue fueron ha había han hasta hay la las le les lo los más me mi mientras mis "
            "mucho muy nada ni no nos nosotros o otra otras otro otros para pero poco por porque pues "
            "que qué quien se sea ser si sí sin sobre son su sus también tan tanto te tiene tienen "
            "todo todos tu un una uno unos ya y yo"
        ),
        _LATIN,
        (206.84, 1.02, 60.0),
    ),
    "it": Language(
        "Italian",
        _words(
            "a abbia agli ai al alla alle allo anche ancora avere c che chi ci come con contro cosa "
            "così da dagli dai dal dalla dalle degli dei del della delle dello dentro di dopo dove "
            "due e è ed era erano essere fa fino fra già gli ha hanno i il in io la le lei li lo loro "
            "lui ma me mentre mia mio molto ne negli nei nel nella nelle noi non nostro o ogni per "
            "perché però più poi prima può qua quale quando quanto quella quelle quelli quello questa "
            "queste questi questo qui quindi se sempre senza si sia solo sono stata stato su sua sue "
            "sugli sui sul sulla suo suoi tra tu tutti tutto un una uno vi voi"
        ),
        _LATIN,
        (217.0, 1.3, 60.0),
    ),
    "pt": Language(
        "Portuguese",
        _words(
            "a ainda além algo alguns ante antes ao aos após aquela aquele as assim até cada com como "
            "contra da das de dela dele depois desde deve do dois dos durante e é ela elas ele eles "
            "em entre era eram essa esse esta está estão este eu faz foi foram há isso isto já lhe "
            "mais mas me mesmo meu minha muito muitos na não nas nem no nos nós nossa nosso num numa "
            "o onde os ou outra outro outros para pela pelas pelo pelos pode por porque qual quando "
            "que quem são se seja sem ser seu seus só sobre sua suas também tem têm toda todos tudo "
            "um uma você"
        ),
        _LATIN,
        (248.835, 1.015, 84.6),
    ),
    "nl": Language(
        "Dutch",
        _words(
            "aan af al alle alles als altijd andere ben bij daar dan dat de deze die dit doch doen "
            "door dus een eens en er geen ge had heb hebben heeft hem het hier hij hoe hun iets ik in "
            "is ja je kan kon kunnen maar me meer men met mij mijn moet na naar niet niets nog nu of "
            "om omdat onder ons ook op over reeds te tegen toch toen tot u uit uw van veel voor want "
            "waren was wat we werd wezen wie wij wil worden wordt zal ze zei zelf zich zij zijn zo "
            "zonder zou"
        ),
        "aeiouyëïöü",
        (206.84, 0.93, 77.0),
    ),
    "sv": Language(
        "Swedish",
        _words(
            "alla allt att av blev bli blir bara de dem den denna deras dess dessa det detta dig din "
            "du där då efter ej eller en ett efter från för ha hade han hans har henne hennes hon hur "
            "här i icke ingen inom inte jag ju kan kunde man med mellan men mer mig min mot mycket ni "
            "nu när någon något några och om oss på samma sedan sig sin sina själv ska skulle som så "
            "till under upp ut utan vad var vara varför varit vi vid vilka än är åt över"
        ),
        "aeiouyåäö",
        None,
    ),
    "pl": Language(
        "Polish",
        _words(
            "a aby ale albo bardzo bez być był była było były będzie co czy dla do gdy gdzie go i ich "
            "ile im inne jak jako jej jego jest jeszcze jeśli już każdy kiedy która które którego "
            "której który którzy lub ma mają między może można mu na nad nie niż o od oraz po pod "
            "przed przez przy są się tak także tam te tego tej ten to tu tych tylko tym w we wiele "
            "więc wszystko z za ze że"
        ),
        "aeiouyąęó",
        None,
    ),
}

_SCRIPTS = (
    ("ja", "Japanese", re.compile(r"[\u3040-\u30ff]")),
    ("ko", "Korean", re.compile(r"[\uac00-\ud7af]")),
    ("zh", "Chinese", re.compile(r"[\u4e00-\u9fff]")),
    ("ru", "Russian", re.compile(r"[\u0400-\u04ff]")),
    ("el", "Greek", re.compile(r"[\u0370-\u03ff]")),
    ("ar", "Arabic", re.compile(r"[\u0600-\u06ff]")),
    ("he", "Hebrew", re.compile(r"[\u0590-\u05ff]")),
    ("hi", "Hindi", re.compile(r"[\u0900-\u097f]")),
    ("th", "Thai", re.compile(r"[\u0e00-\u0e7f]")),
)
_UNKNOWN = LanguageGuess("und", "undetermined", 0.0)


def guess_language(text: str, words: Sequence[str]) -> LanguageGuess:
    """Guess the language.

    Args:
        text: The text; its script is looked at first.
        words: Its words in lower case, in order.

    Returns:
        The guess; for scripts shared by several languages the most widely written one.
    """
    sample = text[:20_000]
    letters = sum(character.isalpha() for character in sample)
    if not letters:
        return _UNKNOWN
    for code, name, pattern in _SCRIPTS:
        share = len(pattern.findall(sample)) / letters
        # Japanese mixes kana with Chinese characters, so a tenth of kana decides before Chinese is asked.
        if share > (0.1 if code == "ja" else 0.4):
            return LanguageGuess(code, name, round(min(1.0, share + (0.4 if code == "ja" else 0.0)), 3))
    counted = words[:5000]
    if len(counted) < 4:
        return _UNKNOWN
    shares = sorted(
        (
            (sum(word in language.stop_words for word in counted) / len(counted), code)
            for code, language in LANGUAGES.items()
        ),
        key=lambda pair: (-pair[0], pair[1]),
    )
    (best, code), (second, _) = shares[0], shares[1]
    if best < 0.1:
        return _UNKNOWN
    return LanguageGuess(code, LANGUAGES[code].name, round((best - second) / best, 3))
