"""What a circuit calls a feature: its concept, else a name that held on other text, else nothing.

Names are those of `names.h5` beside the dictionaries (features/names/).  Most features have
none that is good enough; a number is better than a wrong word.
"""

from collections.abc import Callable

from saekit.concepts.catalogue import Catalogue
from saekit.features.fingerprint import dictionary_fingerprint
from saekit.features.names.name_file import GOOD, NAMES, FeatureNames
from saekit.sae.storage.dictionary_set import DictionarySet

FAIR = 0.75  # half way from chance to perfect: a name from here to GOOD is shown with a "?"

Namer = Callable[[int, int], str | None]
"""(layer, feature) -> what people call it, or None."""


def names_of(dictionaries: DictionarySet) -> FeatureNames | None:
    """The names beside the dictionaries, if they were made.

    Raises:
        FormatError: the file of names is broken.
        MismatchError: it names the features of other dictionaries.
    """
    path = dictionaries.path / NAMES
    if not path.is_file():
        return None
    names = FeatureNames.read(path)
    found = {
        layer: dictionary_fingerprint(dictionaries[layer]) if layer in dictionaries.layers else None
        for layer in names.layers
    }
    names.check_dictionaries(found, dictionaries.path)
    return names


def namer(catalogue: Catalogue | None, names: FeatureNames | None) -> Namer:
    """How to call features.

    A name of `names` counts by its balanced accuracy on the part of the text on which names are
    chosen: from `GOOD` on it is given as it is, from `FAIR` on with " ?" behind it.
    """
    scores = None if names is None else names.column("chosen_detection")

    def name(layer: int, feature: int) -> str | None:
        concept = None if catalogue is None else catalogue.name_of(layer, feature)
        if concept is not None or names is None or scores is None or layer not in names.layers:
            return concept
        at = names.layers.index(layer), feature
        text = names.texts[int(names.numbers[at])]
        if not text or not scores[at] >= FAIR:  # NaN, not measured, is not enough either
            return None
        return text if scores[at] >= GOOD else f"{text} ?"

    return name
