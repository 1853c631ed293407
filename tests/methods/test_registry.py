from __future__ import annotations

import subprocess
import sys

import pytest

from merganser.errors import RequestError
from merganser.methods import all_methods, get, method

BUILT_IN = {"linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties", "breadcrumbs"}


def test_built_in_methods_are_found():
    assert set(all_methods()) >= BUILT_IN


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_methods_are_documented(name):
    found = get(name)
    doc = found.function.__doc__
    assert found.summary.endswith((".", ").", "i)."))
    assert "mergekit 0.1.5" in doc
    assert found.paper
    for parameter in found.parameters:
        assert parameter.name in doc or parameter.name in get("ties").function.__doc__
        assert parameter.kind in ("coefficient", "bool", "integer", "number", "choice")


def test_parameters_are_read_from_the_signature():
    by_name = {p.name: p for p in get("ties").parameters}
    assert by_name["density"].per_model
    assert by_name["density"].default == 0.2
    assert not by_name["scale"].per_model
    assert by_name["scale"].key == "lambda"
    assert by_name["scope"].choices == ("tensor", "model")
    assert get("slerp").parameter("t").required


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(RequestError, match="did you mean 'ties'"):
        get("tie")
    with pytest.raises(RequestError, match="ties has no parameter 'densty'; did you mean 'density'"):
        get("ties")(None, [], densty=1)


@pytest.mark.parametrize("count", [0, 2])
def test_slerp_takes_one_model_beside_its_base(count):
    with pytest.raises(RequestError, match=f"exactly 1 model beside its base; there are {count}"):
        get("slerp").check_inputs(True, count)


def test_a_name_is_registered_once_and_signatures_are_checked():
    with pytest.raises(RequestError, match="already a method 'ties'"):

        @method("ties")
        def mine(base, models): ...

    with pytest.raises(RequestError, match="keyword-only"):

        @method("positional")
        def positional(base, models, weight=1.0): ...

    with pytest.raises(RequestError, match="'x' is annotated"):

        @method("untyped")
        def untyped(base, models, *, x: dict): ...

    assert not {"positional", "untyped"} & set(all_methods())


PLUGIN = '''
from merganser.methods import PerModel, method

@method("halfway", base="refused", min_models=2, max_models=2)
def halfway(base, models, *, weight: PerModel = 1.0):
    """Halfway between two models."""
    return (models[0] + models[1]) / 2
'''


def install(site, name, module, source, points):
    (site / f"{module}.py").write_text(source)
    info = site / f"{name}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[merganser.methods]\n" + points)


def ask(site, code):
    program = f"import sys; sys.path.insert(0, {str(site)!r})\n" + code
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_third_parties_register_through_an_entry_point(tmp_path):
    install(tmp_path, "good-methods", "good_methods", PLUGIN, "halfway = good_methods:halfway\n")
    install(
        tmp_path, "bad-methods", "bad_methods", "import nothing_of_this_name\n", "worse = bad_methods:worse\n"
    )
    done = ask(
        tmp_path,
        "from merganser.methods import all_methods, broken, get\n"
        "print(get('halfway').max_models, 'ties' in all_methods(), list(broken()))\n"
        "for name in ('worse', 'hafway'):\n"
        "    try: get(name)\n"
        "    except Exception as error: print(type(error).__name__, error)\n",
    )
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert first == "2 True ['worse']"
    assert second.startswith(
        "RequestError the method 'worse' of the distribution bad-methods 1.2 could not be loaded"
    )
    assert "nothing_of_this_name" in second
    assert "did you mean 'halfway'" in third


def test_a_third_party_cannot_take_a_built_in_name(tmp_path):
    install(tmp_path, "greedy", "greedy", PLUGIN.replace('"halfway"', '"ties"'), "ties = greedy:halfway\n")
    done = ask(tmp_path, "from merganser.methods import broken, get\nprint(get('ties').paper, broken())")
    assert done.stdout.startswith("P267 {'ties': \"the method 'ties' of the distribution greedy 1.2"), (
        done.stderr
    )
