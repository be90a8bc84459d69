"""Titles and names of the atlas, the same in chart, terminal and file.  No torch."""

from saekit.heads.scores import HeadScores

MODEL_TITLES = {"gpt2": "GPT-2", "gpt2-small": "GPT-2", "openai-community/gpt2": "GPT-2"}


def relation_title(name: str) -> str:
    """`relation_title("name_copying") == "Name-Copying"`."""
    return "-".join(word.capitalize() for word in name.replace("-", "_").split("_") if word)


def model_title(model: str) -> str:
    """GPT-2 for its hub ids; the last part of a path otherwise."""
    return MODEL_TITLES.get(model) or model.rstrip("/").rsplit("/", 1)[-1]


def panel_titles(scores: HeadScores) -> tuple[str, str]:
    """Titles of the two heatmaps."""
    model, relation = model_title(scores.model), relation_title(scores.relation)
    return f"{model}: {relation} heads", f"{model}: (Suppression) {relation} heads"


def how_measured(scores: HeadScores) -> str:
    """What a score is and what it is compared with, in one line."""
    place = "the token" if scores.k == 1 else f"among the {scores.k} tokens"
    return (
        f"Share of {scores.n_pairs} pairs whose target is {place} that the head's weights raise "
        "(right: lower) most. "
        f"Shuffled targets: at most {scores.null_scores.max():.3f} "
        f"(right: {scores.null_suppression.max():.3f}); constant head: {scores.constant:.3f}."
    )
