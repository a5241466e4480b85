"""The one exception that ends the program with a sentence for the person who typed the command.

It must not know what went wrong: whoever raises it writes the sentence.
"""


class UserError(Exception):
    """What the user can mend: the message names the value, what is allowed and what to do.

    `evictbench` prints the message without a traceback and exits with code 2.
    """
