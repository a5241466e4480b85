import json

import pytest

from scripts import bench_prefill


def test_operations_are_counted_and_times_are_ratios_to_dense(capsys):
    asked = ["--lengths", "300", "--layers", "2", "--rounds", "1"]
    assert bench_prefill.main([*asked, "--patterns", "a_shape", "xattention"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["pattern"], second["pattern"]) == ("a_shape", "xattention")
    # Two products of 128 x 128 x 64 multiplications and additions for 6 pairs, 9 heads, 2 layers.
    assert first["dense_flops"] == 2 * 9 * 6 * 2 * (2 * 128 * 128 * 64)
    assert first["computed"] == [1, 1]  # the window is longer than the prompt
    assert first["flops"] == first["dense_flops"] >= second["flops"]
    for row in (first, second):
        assert row["both_to_dense"] == pytest.approx(
            row["search_to_dense"] + row["attention_to_dense"], abs=0.002
        )


@pytest.mark.parametrize("wrong", [["--lengths", "10"], ["--rounds", "0"], ["--patterns", "dense"]])
def test_senseless_sizes_are_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        bench_prefill.main(wrong)
    assert "error:" in capsys.readouterr().err
