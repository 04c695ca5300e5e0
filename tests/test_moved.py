import importlib

import pytest

from pyro_vmonf._moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_the_old_place_gives_the_same_objects_and_says_where_they_are(old: str) -> None:
    pytest.importorskip("lightning" if old == "lightning" else "torch")
    new = importlib.import_module(f"pyro_vmonf.{MOVED[old]}")
    names = [
        name
        for name, value in vars(new).items()
        if getattr(value, "__module__", "")
        and str(value.__module__).startswith("pyro_vmonf.")
        and not name.startswith("_")
    ]
    assert names
    moved = importlib.import_module(f"pyro_vmonf.{old}")
    for name in names:
        with pytest.warns(DeprecationWarning, match=f"import it from pyro_vmonf.{MOVED[old]}"):
            assert getattr(moved, name) is getattr(new, name)


def test_an_unknown_name_is_an_import_error() -> None:
    with pytest.raises(ImportError):
        exec("from pyro_vmonf.temperature import nothing")


def test_the_package_warns_of_nothing_itself() -> None:
    with pytest.warns(DeprecationWarning, match="pyro_vmonf.temperature.cooling has moved"):
        from pyro_vmonf.temperature import cooling
    assert cooling().final == 0.1
