"""The picture of rooms is drawn from the imports."""

from architecture_picture import PICTURE, drawn, imports


def test_the_picture_is_drawn_from_the_imports() -> None:
    assert PICTURE.read_text("utf-8") == drawn(imports()), (
        "docs/images/architecture.svg is not what the imports say; "
        "run python scripts/architecture_picture.py"
    )


def test_a_way_through_other_rooms_replaces_an_arrow() -> None:
    picture = drawn({"config": set(), "data": {"config"}, "models": {"config", "data"}})
    assert picture.count("marker-end") == 2
