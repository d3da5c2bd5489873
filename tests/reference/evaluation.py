"""Measures of scikit-learn that the Rust code has as well: shrinkage, agreement of clusterings, average precision.

Writes tests/golden/eval/{ledoit_wolf,clustering,average_precision}.safetensors and their entries in the manifest.
"""

import json
from pathlib import Path

import numpy as np
import sklearn
from safetensors.numpy import save_file
from scipy.optimize import linear_sum_assignment
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import adjusted_rand_score, average_precision_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
ORIGIN = f"scikit-learn {sklearn.__version__} by tests/reference/evaluation.py"


def shrinkage() -> tuple:
    """From rows that are few to rows that are many, with features of unlike scale."""
    generator = np.random.default_rng(21)
    settings, tensors = [(6, 10), (30, 10), (400, 5)], {}
    for i, (n, d) in enumerate(settings):
        x = (generator.normal(size=(n, d)) @ generator.normal(size=(d, d)) + 1).astype(np.float32)
        covariance, weight = ledoit_wolf(x.astype(np.float64))
        # Ours divides by n - 1.
        tensors |= {f"in.x{i}": x, f"out.f64.covariance{i}": covariance * n / (n - 1), f"out.f64.weight{i}": np.float64(weight)}
    notes = "covariance: ledoit_wolf's times n / (n - 1), whose divisor is n; weight: of the identity."
    return "ledoit_wolf", {"settings": [{"n": n, "d": d} for n, d in settings]}, notes, tensors


def clustering() -> tuple:
    """Clusters that agree with labels fully, partly, by chance, and in number not at all."""
    generator = np.random.default_rng(22)
    labels = generator.integers(0, 5, 200)
    noisy = np.where(generator.random(200) < 0.3, generator.integers(0, 5, 200), (labels + 2) % 5)
    clusterings = [(labels * 3 + 1) % 5, noisy, generator.integers(0, 7, 200), np.zeros(200, dtype=np.int64), noisy // 2]
    tensors = {"in.labels": labels}
    for i, clusters in enumerate(clusterings):
        table = contingency_matrix(labels, clusters)
        rows, columns = linear_sum_assignment(table, maximize=True)
        tensors |= {
            f"in.clusters{i}": clusters,
            f"out.f64.nmi{i}": np.float64(normalized_mutual_info_score(labels, clusters)),
            f"out.f64.ari{i}": np.float64(adjusted_rand_score(labels, clusters)),
            f"out.f64.purity{i}": np.float64(table.max(axis=0).sum() / 200),
            f"out.f64.accuracy{i}": np.float64(table[rows, columns].sum() / 200),
        }
    notes = "nmi: arithmetic mean of both entropies; accuracy: scipy's linear_sum_assignment of clusters to labels."
    return "clustering", {"clusterings": len(clusterings)}, notes, tensors


def average_precision() -> tuple:
    """Every row in turn as a query against all others, by cosine."""
    generator = np.random.default_rng(23)
    labels = generator.integers(0, 4, 60)
    rows = (generator.normal(size=(4, 6))[labels] + 1.5 * generator.normal(size=(60, 6))).astype(np.float32)
    unit = rows.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosines, others = unit @ unit.T, ~np.eye(60, dtype=bool)
    precisions = [
        average_precision_score(labels[others[i]] == labels[i], cosines[i, others[i]]) for i in range(60)
    ]
    tensors = {"in.rows": rows, "in.rows_labels": labels, "out.f64.mean_average_precision": np.float64(np.mean(precisions))}
    return "average_precision", {}, "leave-one-out; no two cosines are equal.", tensors


def entry(case: str, params: dict, notes: str, tensors: dict) -> dict:
    """Writes the tensors of a case and returns its entry."""
    file = f"eval/{case}.safetensors"
    save_file({name: np.ascontiguousarray(t).reshape(t.shape) for name, t in tensors.items()}, GOLDEN / file)
    described = {name: {"dtype": str(t.dtype), "shape": list(t.shape)} for name, t in tensors.items()}
    return {
        "file": file, "area": "eval", "case": case, "origin": ORIGIN, "params": params, "notes": notes,
        "rtol": 1e-9, "atol": 1e-12, "tensors": described,
    }


def main() -> None:
    entries = [entry(*case()) for case in (shrinkage, clustering, average_precision)]
    path = GOLDEN / "manifest.json"
    lines = [line.rstrip(",") for line in path.read_text().splitlines()[1:-1]]
    lines = [line for line in lines if json.loads(line)["origin"] != ORIGIN]
    lines += [json.dumps(entry) for entry in entries]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
