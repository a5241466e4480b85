"""What to do about numbers that are not finite, by the dtype that they were computed in.

Knows names of dtypes; must not know tensors.
"""

WIDER = {"float16": "dtype=bfloat16 or dtype=float32", "bfloat16": "dtype=float32"}


def stopped(dtype: str) -> str:
    """Why a prompt that the full cache cannot answer ends everything, and what to do."""
    said = f"the full cache gives numbers that are not finite (NaN or infinite) in {dtype}"
    if dtype in WIDER:
        return f"{said}: give {WIDER[dtype]}."
    return (
        f"{said}, which holds any sound model, so the weights themselves are broken: give weights "
        "without NaN, infinities and entries that are out of all proportion."
    )


def rerun(dtype: str) -> str:
    """What to do about cells that are not finite although the full cache is."""
    if dtype in WIDER:
        return f"run it with {WIDER[dtype]}"
    if not dtype:
        return "run it in a wider dtype"
    return f"{dtype} is the widest there is: mend the weights or the method's parameters"
