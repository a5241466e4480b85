"""What to do about numbers that are not finite, by the dtype that they were computed in.

Knows names of dtypes; must not know tensors.
"""

WIDER = {"float16": "dtype=bfloat16 or dtype=float32", "bfloat16": "dtype=float32"}


def stopped(name: str, dtype: str) -> str:
    """Why a prompt that a model's full cache cannot answer ends everything, and what to do."""
    said = f"the full cache gives numbers that are not finite (NaN or infinite) in {dtype}"
    if dtype in WIDER:
        return f"{said}: give {WIDER[dtype]}."
    return (
        f"{said}, the widest there is, so the weights of {name} themselves are broken: give "
        "weights without NaN, infinities and numbers out of all proportion."
    )


def rerun(dtype: str) -> str:
    """What to do about cells that are not finite although the full cache is."""
    mend = "mend the weights or the method's parameters"
    if dtype in WIDER:
        return f"run it with {WIDER[dtype]} and, if that changes nothing, {mend}"
    return f"{dtype} is the widest there is, so {mend}" if dtype else "run it in a wider dtype"
