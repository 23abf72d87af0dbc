"""Every method against mergekit's definitions in float64, to 1 ulp of the output type or 8·ε₃₂·Σ|terms|, whichever is more."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.engine import definitions as oracle
from tests.engine.synthetic import Tensors, load, low_rank, random_tensors, run, shapes, write_adapter, write_model

EPS32 = 2.0**-23
MANTISSA = {"bfloat16": 7, "float16": 10, "float32": 23}
SMALLEST = {"bfloat16": -126, "float16": -14, "float32": -126}
FORMS = ("models", "slices", "lora")


def ulp(values: np.ndarray, dtype: str) -> np.ndarray:
    exponent = np.maximum(np.floor(np.log2(np.maximum(np.abs(values), 1e-300))), SMALLEST[dtype])
    return 2.0 ** (exponent - MANTISSA[dtype])


def check(found: Tensors, expected: Callable[[str], tuple[np.ndarray, np.ndarray]], dtype: str) -> None:
    """`expected(name)` is the exact value and Σ|terms|. Rounding to the output type costs half an ulp of the allowance."""
    for name, values in found.items():
        exact, terms = expected(name)
        allowed = np.maximum(ulp(exact, dtype), 8 * EPS32 * terms + ulp(exact, dtype) / 2)
        error = np.abs(values - exact)
        assert (error <= allowed).all(), f"{name}: {float((error / allowed).max()):.2f} of what is allowed"


class Family:
    """A base and three sources, as full models or as adapters, and their values in float64."""

    def __init__(self, folder: Path, dtype: str, *, adapters: bool) -> None:
        self.dtype = dtype
        base = random_tensors(0)
        self.base_ref = str(write_model(folder / "base", base, dtype, shards=2))
        self.base = load(Path(self.base_ref))
        self.refs, self.values = [], []
        for n in (1, 2, 3):
            if adapters:
                modules = {
                    k.removesuffix(".weight"): s for k, s in shapes().items() if "proj.weight" in k and (n > 1 or "q_" in k)
                }
                factors = {k: 0.2 * v for k, v in low_rank(n, modules, rank=n + 1).items()}
                path = write_adapter(folder / f"lora{n}", factors, r=n + 1, lora_alpha=2 * n)
                stored = load(path)
                values = dict(self.base)
                for module in modules:
                    stem = f"base_model.model.{module}.lora_"
                    values[f"{module}.weight"] = self.base[f"{module}.weight"] + 2 * n / (n + 1) * (
                        stored[stem + "B.weight"] @ stored[stem + "A.weight"]
                    )
                self.refs.append(f"{self.base_ref}+{path}")
                self.values.append(values)
            else:
                path = write_model(folder / f"model{n}", random_tensors(n, around=base, size=0.3), dtype, shards=n)
                self.refs.append(str(path))
                self.values.append(load(path))

    def recipe(self, method: str, form: str, sources: list[dict[str, object]], *, base: bool = True, **shared: object) -> str:
        def entry(ref: str, parameters: dict[str, object]) -> dict[str, object]:
            part = {"layer_range": [0, 3]} if form == "slices" else {}
            return {"model": ref, **part, "parameters": parameters}

        entries = [entry(ref, parameters) for ref, parameters in zip(self.refs, sources, strict=False)]
        if base:
            entries.append(entry(self.base_ref, {}))
        body: dict[str, object] = {"merge_method": method, "dtype": self.dtype, "parameters": shared}
        if base:
            body["base_model"] = self.base_ref
        body |= {"slices": [{"sources": entries}]} if form == "slices" else {"models": entries}
        return json.dumps(body)  # JSON is YAML


@pytest.fixture(params=list(itertools.product(MANTISSA, FORMS)), ids="-".join)
def family(request: pytest.FixtureRequest, tmp_path: Path, small_blocks: None) -> tuple[Family, str]:
    dtype, form = request.param
    return Family(tmp_path, dtype, adapters=form == "lora"), form


def merged(
    family: tuple[Family, str], tmp_path: Path, method: str, sources: list[dict[str, object]], **settings: object
) -> Tensors:
    run(
        family[0].recipe(method, family[1], sources, **settings),
        tmp_path / "out",
    )
    return load(tmp_path / "out")


def test_linear(family: tuple[Family, str], tmp_path: Path) -> None:
    weights = [0.7, 0.5, -0.1]
    for normalize in (True, False):
        found = merged(
            family, tmp_path / str(normalize), "linear", [{"weight": w} for w in weights], base=False, normalize=normalize
        )

        def expected(name: str, normalize: bool = normalize) -> tuple[np.ndarray, np.ndarray]:
            values = [source[name] for source in family[0].values]
            terms = sum(abs(w * v) for w, v in zip(weights, values, strict=True)) / (sum(weights) if normalize else 1)
            return oracle.linear(values, weights, normalize), terms

        check(found, expected, family[0].dtype)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp(family: tuple[Family, str], tmp_path: Path, t: float) -> None:
    found = merged(family, tmp_path, "slerp", [{}], t=t)

    def expected(name: str) -> tuple[np.ndarray, np.ndarray]:
        base, other = family[0].base[name], family[0].values[0][name]
        return oracle.slerp(base, other, t), 2 * abs(base) + abs(other)

    check(found, expected, family[0].dtype)


@pytest.mark.parametrize("base", [True, False])
def test_nuslerp_and_multislerp(family: tuple[Family, str], tmp_path: Path, base: bool) -> None:
    weights = [0.8, 0.5, 0.4]
    nuslerp = merged(family, tmp_path / "nu", "nuslerp", [{"weight": w} for w in weights[:2]], base=base)
    multislerp = merged(family, tmp_path / "multi", "multislerp", [{"weight": w} for w in weights], base=base)

    def parts(name: str) -> tuple[list[np.ndarray], np.ndarray | None, np.ndarray]:
        values = [source[name] for source in family[0].values]
        terms = sum(abs(v) for v in values) + 2 * abs(family[0].base[name])
        return values, family[0].base[name] if base else None, terms

    def expected_nuslerp(name: str) -> tuple[np.ndarray, np.ndarray]:
        values, zero, terms = parts(name)
        return oracle.nuslerp(values[0], values[1], weights[:2], zero), terms

    def expected_multislerp(name: str) -> tuple[np.ndarray, np.ndarray]:
        values, zero, terms = parts(name)
        if zero is not None and not any(np.any(v != zero) for v in values):
            return zero, terms  # mergekit divides zero by zero here; the engine keeps the base
        return oracle.multislerp(values, weights, zero), terms

    check(nuslerp, expected_nuslerp, family[0].dtype)
    check(multislerp, expected_multislerp, family[0].dtype)


@pytest.mark.parametrize("rounds", [1, 10])
def test_karcher(family: tuple[Family, str], tmp_path: Path, rounds: int) -> None:
    found = merged(family, tmp_path, "karcher", [{}, {}, {}], base=False, max_iter=rounds)

    def expected(name: str) -> tuple[np.ndarray, np.ndarray]:
        values = [source[name] for source in family[0].values]
        return oracle.karcher(values, rounds), sum(abs(v) for v in values) + abs(family[0].base[name])

    check(found, expected, family[0].dtype)


@pytest.mark.parametrize("t", [0.0, 0.05, 10.0])
def test_nearswap(family: tuple[Family, str], tmp_path: Path, t: float) -> None:
    found = merged(family, tmp_path, "nearswap", [{}], t=t)

    def expected(name: str) -> tuple[np.ndarray, np.ndarray]:
        base, other = family[0].base[name], family[0].values[0][name]
        return oracle.nearswap(base, other, t), 2 * abs(base) + abs(other)

    check(found, expected, family[0].dtype)


def test_ram_and_ramplus_tl(family: tuple[Family, str], tmp_path: Path) -> None:
    epsilon = 0.1  # of the size of the changes, so that some are alone and some are shared
    plain = merged(family, tmp_path / "ram", "ram", [{}, {}, {}], epsilon=epsilon)
    plus = merged(family, tmp_path / "plus", "ramplus_tl", [{}, {}, {}], epsilon=epsilon, r=0.3, alpha=0.9)

    def expected(r: float, alpha: float) -> Callable[[str], tuple[np.ndarray, np.ndarray]]:
        def of(name: str) -> tuple[np.ndarray, np.ndarray]:
            base, values = family[0].base[name], [source[name] for source in family[0].values]
            return oracle.ram(base, values, r, alpha, epsilon), 2 * (sum(abs(v) for v in values) + abs(base))

        return of

    check(plain, expected(0, 0), family[0].dtype)
    check(plus, expected(0.3, 0.9), family[0].dtype)


@pytest.mark.parametrize("topk", [0.0, 0.3, 1.0])
def test_sce(family: tuple[Family, str], tmp_path: Path, topk: float) -> None:
    found = merged(family, tmp_path, "sce", [{}, {}, {}], select_topk=topk)

    def expected(name: str) -> tuple[np.ndarray, np.ndarray]:
        base, values = family[0].base[name], [source[name] for source in family[0].values]
        return oracle.sce(base, values, topk), sum(abs(v) for v in values) + 3 * abs(base)

    check(found, expected, family[0].dtype)


def test_arcee_fusion(family: tuple[Family, str], tmp_path: Path) -> None:
    found = merged(family, tmp_path, "arcee_fusion", [{}])

    def expected(name: str) -> tuple[np.ndarray, np.ndarray]:
        base, other = family[0].base[name], family[0].values[0][name]
        return oracle.arcee_fusion(base, other), 2 * abs(base) + abs(other)

    check(found, expected, family[0].dtype)


def test_model_stock(family: tuple[Family, str], tmp_path: Path) -> None:
    found = merged(family, tmp_path, "model_stock", [{}, {}, {}])

    def expected(name: str) -> tuple[np.ndarray, np.ndarray]:
        values = [source[name] for source in family[0].values]
        return oracle.model_stock(family[0].base[name], values), 2 * sum(abs(v) for v in values)

    check(found, expected, family[0].dtype)


@pytest.mark.parametrize(
    ("method", "elect", "normalize", "rescale"),
    [
        ("task_arithmetic", False, False, False),
        ("task_arithmetic", False, True, False),
        ("ties", True, True, False),
        ("ties", True, False, True),
        ("breadcrumbs", False, False, False),
        ("breadcrumbs_ties", True, True, True),
    ],
)
def test_task_vector_methods(
    family: tuple[Family, str], tmp_path: Path, method: str, elect: bool, normalize: bool, rescale: bool
) -> None:
    weights, densities, gamma = [0.9, 0.4, 0.3], [0.5, 0.25, 1.0], 0.05
    extra = {"gamma": gamma} if "bread" in method else {}
    sources = [{"weight": w, "density": d, **extra} for w, d in zip(weights, densities, strict=True)]
    found = merged(family, tmp_path, method, sources, normalize=normalize, rescale=rescale, **{"lambda": 0.8})

    def expected(name: str) -> tuple[np.ndarray, np.ndarray]:
        base, values = family[0].base[name], [source[name] for source in family[0].values]
        masks = []
        for value, density in zip(values, densities, strict=True):
            wanted = 1.0 if method == "task_arithmetic" else density
            mask = oracle.outlier_mask(value - base, wanted, gamma) if extra else oracle.magnitude_mask(value - base, wanted)
            masks.append(mask)
        exact = oracle.task_vectors(base, values, weights, masks, elect=elect, normalize=normalize, rescale=rescale, strength=0.8)
        # Without normalisation nothing divides; with it, a sum of deltas is divided by at least the smallest weight.
        return exact, abs(base) + 4 * sum(abs(value - base) + abs(value) for value in values)

    check(found, expected, family[0].dtype)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_random_methods_given_what_they_kept(family: tuple[Family, str], tmp_path: Path, method: str) -> None:
    """With one source and no election, what was kept can be read off the result; the rest then follows the definition."""
    found = merged(family, tmp_path, method, [{"weight": 1.0, "density": 0.6}], normalize=False, **{"lambda": 1.0})

    def expected(name: str) -> tuple[np.ndarray, np.ndarray]:
        base, value = family[0].base[name], family[0].values[0][name]
        if not np.any(value != base):
            return base, abs(base)
        mask = abs(found[name] - base) > ulp(base, family[0].dtype) / 2 * 1.01
        exact = oracle.task_vectors(base, [value], [1.0], [mask], elect="linear" not in method, normalize=False, rescale=True)
        # An element whose delta rounds to nothing reads as dropped: allow what that moves the scale by.
        return exact, abs(base) + abs(value) + abs(exact - base) / EPS32 * 0.02

    check(found, expected, family[0].dtype)


def test_passthrough_scales_and_copies(family: tuple[Family, str], tmp_path: Path) -> None:
    copied = merged(family, tmp_path / "copy", "passthrough", [{}], base=False)
    scaled = merged(family, tmp_path / "scale", "passthrough", [{"scale": 0.5}], base=False)
    source = family[0].values[0]
    check(copied, lambda name: (source[name], abs(source[name]) + abs(family[0].base[name])), family[0].dtype)
    check(scaled, lambda name: (0.5 * source[name], abs(source[name]) + abs(family[0].base[name])), family[0].dtype)
