"""The column types of InfiniteBench's files; must not know prompts or metrics."""

from datasets import Features, List, Value

# Answers are text in some files, whole numbers in others, and both kinds of number in math_find:
# left to itself, the reader takes the type from the first block and may fail at a later one.
FEATURES = Features(
    {
        "id": Value("int64"),
        "context": Value("string"),
        "input": Value("string"),
        "answer": List(Value("string")),
        "options": List(Value("string")),
    }
)
