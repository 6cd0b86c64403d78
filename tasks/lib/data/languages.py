"""The language of a text, by py3langid (the extra `language`): a naive Bayes over bytes, with a probability."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tasks.lib.stage import Problem

LEAST_CHARACTERS = 40  # shorter texts have no sure language
SURE = 0.9  # the probability from which a language counts as known


def of_others(languages: Sequence[str]) -> Callable[[str], str | None]:
    """A function: text -> its language and the probability where that is surely none of `languages` (en, de, ...)."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        hint = "pip install -e '.[language]', or languages: null"
        raise Problem(f"params.yaml: curate.languages needs a package that is not installed: {hint}") from None
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    for language in sorted(languages):
        if language not in identifier.labels:
            known = ", ".join(sorted(identifier.labels))
            raise Problem(f"params.yaml: curate.languages: {language} is not one of {known}")

    def other(text: str) -> str | None:
        if len(text) < LEAST_CHARACTERS:
            return None
        language, probability = identifier.classify(text)
        if language in languages or probability < SURE:
            return None
        return f"{language} with probability {probability:.2f}"

    return other
