"""What docs/security.md claims of the code: dangerous calls are not in it, and each claim there names a test that exists."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.films import dicom, smooth
from vbd.config import PrepareConfig
from vbd.data.images.prepare import prepare_image

ROOT = Path(__file__).parent.parent
CODE = sorted(path for folder in ("vbd", "jobs", "deploy") for path in (ROOT / folder).rglob("*.py"))

# Modules that run code which lies in the data they read; `pickle` itself may be imported for its errors.
_MODULES = {"dill", "marshal", "shelve", "joblib", "jsonpickle"}
_CALLS = {
    **dict.fromkeys(("eval", "exec", "compile"), "runs text as code"),
    **dict.fromkeys(
        ("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"), "runs text in a shell"
    ),
    **dict.fromkeys(
        (
            "pickle.load",
            "pickle.loads",
            "pickle.Unpickler",
            "cloudpickle.load",
            "cloudpickle.loads",
            "ray.cloudpickle.loads",
        ),
        "unpickles",
    ),
    **dict.fromkeys(("pandas.read_pickle", "pd.read_pickle", "torch.hub.load"), "unpickles"),
    **dict.fromkeys(("yaml.load", "yaml.load_all"), "makes any object that YAML names; use yaml.safe_load"),
    **dict.fromkeys(("yaml.unsafe_load", "yaml.full_load", "yaml.UnsafeLoader"), "makes any object that YAML names"),
    "tempfile.mktemp": "names a file that another may make first",
}


def _found(tree: ast.AST) -> Iterator[str]:
    """What is dangerous in a file, by its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):  # `from pickle import loads` is called by a name of its own
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
                yield from (f"line {node.lineno}: {name} {_CALLS[name]}" for name in whole if name in _CALLS)
            yield from (f"line {node.lineno}: imports {name}" for name in names if name.split(".")[0] in _MODULES)
        if isinstance(node, ast.Call):
            yield from (f"line {node.lineno}: {reason}" for reason in _reasons(node))
        if isinstance(node, ast.Constant) and node.value == "0.0.0.0":
            yield f"line {node.lineno}: listens to every network"


def _reasons(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    given = {each.arg: ast.unparse(each.value) for each in call.keywords}
    if name in _CALLS:
        yield f"{name} {_CALLS[name]}"
    if name == "torch.load" and given.get("weights_only") != "True":
        yield "torch.load without weights_only=True unpickles"
    if given.get("allow_pickle", "False") != "False":
        yield f"{name} with allow_pickle unpickles"
    if given.get("shell", "False") != "False":
        yield f"{name} with a shell runs text"
    if given.get("verify", "True") == "False":
        yield f"{name} trusts any server"


def test_no_file_runs_what_it_reads() -> None:
    found = {str(path.relative_to(ROOT)): list(_found(ast.parse(path.read_text()))) for path in CODE}
    assert {name: dangers for name, dangers in found.items() if dangers} == {}
    assert len(found) > 200


@pytest.mark.parametrize(
    "code",
    [
        "import pickle\npickle.load(open('x', 'rb'))",
        "from pickle import loads",
        "import joblib",
        "from marshal import loads",
        "yaml.load(text)",
        "yaml.load(text, Loader=yaml.UnsafeLoader)",
        "torch.load('model.pt')",
        "torch.load('model.pt', weights_only=False)",
        "torch.load('model.pt', weights_only=flag)",
        "np.load('x.npy', allow_pickle=True)",
        "eval('1')",
        "exec(text)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "requests.get(url, verify=False)",
        "serve(host='0.0.0.0')",
    ],
)
def test_what_is_dangerous_would_be_found(code: str) -> None:
    assert list(_found(ast.parse(code)))


def test_what_is_not_dangerous_is_left_alone() -> None:
    good = (
        "import pickle\nyaml.safe_load(t)\ntorch.load(f, weights_only=True)\nmodel.eval()\nre.compile('x')\nnp.load(f)"
    )
    assert list(_found(ast.parse(good))) == []


def test_no_file_opens_what_ray_keeps_shut() -> None:
    """By itself Ray asks for a token and shows its dashboard to its own machine alone: nothing here says otherwise."""
    opening = {"RAY_AUTH_MODE", "dashboard_host", "--dashboard-host"}
    found = {str(path.relative_to(ROOT)): _named(ast.parse(path.read_text())) & opening for path in CODE}
    assert {name: names for name, names in found.items() if names} == {}


def test_a_variable_may_be_read_and_not_set() -> None:
    read, written = 'os.environ.get("RAY_AUTH_MODE", "token")', 'os.environ["RAY_AUTH_MODE"] = "disabled"'
    assert _named(ast.parse(read)) == {"token"}
    assert "RAY_AUTH_MODE" in _named(ast.parse(written))


def _named(tree: ast.Module) -> set[str]:
    """Every string and keyword of a file but the names of variables that `os.environ.get` reads."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    read = {id(call.args[0]) for call in calls if ast.unparse(call.func) == "os.environ.get"}
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in read]
    named = {node.value for node in texts if isinstance(node.value, str)}
    return named | {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg}


def test_nothing_that_a_dicom_tells_of_its_patient_gets_into_a_prepared_image() -> None:
    film = dicom(smooth(), PatientName="Roentgen^Anna", PatientID="X-1895", PatientBirthDate="18330422")
    assert b"Roentgen" in film
    for image_format in ("png", "jpeg", "png16"):
        config = PrepareConfig(image_size=64, image_format=image_format)
        prepared = prepare_image(film, name="a.dicom", config=config).data
        assert not any(word in prepared for word in (b"Roentgen", b"X-1895", b"18330422"))


def test_each_claim_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) > 10
    for file, test in named:
        assert (ROOT / file).is_file(), f"docs/security.md names {file}, which is not there"
        tree = ast.parse((ROOT / file).read_text())
        tests = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert not test or test in tests, f"docs/security.md names {test}, which is not in {file}"
    claims = text.split("| claim | proof |\n|---|---|\n")[1].split("\n\n")[0].splitlines()
    assert len(claims) > 10
    assert [claim for claim in claims if "`tests/" not in claim] == []
