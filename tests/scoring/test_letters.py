"""Chinese answers and conclusions: what names an option, and what only speaks of one."""

# ruff: noqa: RUF001 - Chinese punctuation and wide letters are meant

import pytest

from harness.scoring import strict
from harness.scoring.letters import ascii_letters
from harness.scoring.mmbench import MMBench
from harness.scoring.mmbench_tasks import final_answer
from tests.scoring.lmms_tasks import results
from tests.scoring.mmbench_data import made

CHOICES = dict(zip("ABCD", ("红花", "绿草", "深蓝花", "黄花"), strict=True))
# Each line is a kind of answer that names B.
NAMED = """
答案是B 选B 选项B （B） 正确答案：B B。 Ｂ 答案：B 我选择B B、 应选B 选择：Ｂ B！ 答案是：**B**
答案是“B” 故选：B 因此，答案是B。 所以答案选B 综上所述，选B 根据图片，应该选择B选项。 最终答案：B
【答案】B B选项 B项正确 B是正确的 B是正确答案 正确的选项为B 正确的是选项B 答案选择选项B 是B
应该是B 选择的是B 最佳选项是B 應選B 答案為B 選項B ｛B｝ 【B】 「B」 “B” （Ｂ） Ｂ．绿草 B、绿草
B：绿草 （B）绿草 B。因为它是绿的 答案是B（绿草） 选B绿草 选B，因为图中是绿草 选B。A是错的
答案是B，不是A 答案是B而不是A 不选A，选B 不是A，选B 除A外，选B 没错，选B 毫无疑问选B 答案是b
"""
SPACED = ("答案为 B", "选 B", "答案是 B 绿草", "答案：\nB", "B （绿草）", "答案是 「B」")
# Each speaks of B, or of more, and names none.
NOT_NAMED = """
不选B 答案不是B 除了B A和B都对 AB 选A或B 选A和B A、B 答案是A和B 选B、C 选BC A/B都可以 A。B
选Ａ、Ｂ 既不是A也不是B 选A，选B A对，B也对 B不对 B错误 B不正确 B是错误的 选项B不正确 选B是错的
B选项是错误的 B除外 除B外 除了选项B 排除B 排除选项B 不考虑B B不是答案 不应选B 不应该选B 不能选B
没选B 别选B 勿选B 非B 并非B 答案非B 绝不选B 答案不一定是B 答案可能不是B 应该不是B 错误答案是B
不正确的是B 答案是B吗？ 是不是选B 选B还是选C 选B？ 如果选B 我不认为答案是B 无法确定答案是B
为什么选B 谁选B 不知道是A还是B 可能是A，也可能是B 选E 答案是E Ｅ E。 答案是AB 维生素B B超 候选B
B型血 C语言 选A4 选项A是红花，选项B是绿草 A：红花，B：绿草 请选择A、B、C或D 答案 选 无
"""
NOT_NAMED_SPACED = ("不选 B", "答案不是 B", "除了 B", "A 和 B", "A 和B", "答案：A B", "不选：B")


@pytest.mark.parametrize("answer", [*NAMED.split(), *SPACED])
def test_an_answer_in_chinese_is_read(answer: str) -> None:
    assert strict.letter(answer, CHOICES) == "B"


@pytest.mark.parametrize("answer", [*NOT_NAMED.split(), *NOT_NAMED_SPACED])
def test_what_does_not_name_a_letter_is_not_read(answer: str) -> None:
    choices = {name: f"{text}{name.lower()}x" for name, text in CHOICES.items()}  # no text decides
    assert strict.letter(answer, choices) is None


@pytest.mark.parametrize(
    ("text", "final"),
    [
        ("图中是绿草，所以答案选B", "B"),
        ("It is green. Therefore the correct option is B.", "B"),
        (r"So it is \boxed{B}", "B"),
        (r"So it is $\boxed{\text{B}}$.", "B"),
        (r"The final answer is \boxed{green}", "green"),
        ("It is green.\n**B**", "B"),
        ("答案是：**B**", "B"),
        ("A是红花，B是绿草，所以选择B选项。", "B"),
        ("故选：Ｂ", "B"),
        ("B选项是正确的。", "B"),
        ("Option B is the correct answer.", "B"),
        ("I would choose option B.", "B"),
        ("The answer is B because A is wrong.", "B"),
        ("The answer is B, a cat.", "B"),
        ("The answer is a cat", "a cat"),
        ("答案是绿草", "绿草"),
        ("答案是A。我不选B。", "A"),
        ("We can rule out B. The answer is C", "C"),
        ("<answer>B</answer>", "B"),
        ("选项A是红花，选项B是绿草", ""),
        ("先看A选项，它是红花。再看B选项，", ""),
        ("答案不是B", ""),
        ("The answer is not B.", ""),
        ("I do not think the answer is B.", ""),
        ("The answer is A or B", ""),
        ("答案是A和B", ""),
        ("答案是B吗？", ""),
        (r"\boxed{AB}", ""),
        ("选B还是选C", ""),
        ("B？", ""),
    ],
)
def test_a_conclusion_is_found_and_nothing_else(text: str, final: str) -> None:
    assert final_answer(text) == final


@pytest.mark.parametrize("name", ["mmbench_cn_dev_static", "mmbench_cn_cc_static"])
def test_a_wide_letter_is_the_letter_in_both_readings(tmp_path, name: str) -> None:
    task = made(tmp_path, name)
    documents = list(task.eval_docs_no_media)
    metrics = results(task, ["Ｂ"] * len(documents))
    for document, found in zip(documents, metrics, strict=True):
        assert [judged.parsed for judged in MMBench().both(document, found)] == ["B", "B"]
    assert ascii_letters("选Ｂ，ａ！１") == "选B，a！１"
