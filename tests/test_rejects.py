from vbd.data.rejects import reject, reject_reasons


def test_reasons_are_counted_whatever_their_values() -> None:
    rejects = [
        reject("train.csv", 7, "x_min 30 >= x_max 10"),
        reject("a.png", 0, "truncated or corrupt PNG"),
        reject("train.csv", 9, "x_min 3.5 >= x_max 1"),
        reject("train.csv", 11, "unknown class 'Big heart'"),
        reject("train.csv", 12, "unknown class 'Big heart'"),
        reject("train.csv", 13, "unknown class 'y'"),
        reject("b.txt", 0, "not UTF-8 text (byte 7)"),
    ]
    assert reject_reasons(rejects) == [
        ("x_min # >= x_max #", 2, "train.csv:7: x_min 30 >= x_max 10"),
        ("unknown class 'Big heart'", 2, "train.csv:11: unknown class 'Big heart'"),
        ("truncated or corrupt PNG", 1, "a.png: truncated or corrupt PNG"),
        ("unknown class 'y'", 1, "train.csv:13: unknown class 'y'"),
        ("not UTF-8 text (byte #)", 1, "b.txt: not UTF-8 text (byte 7)"),
    ]
    assert reject_reasons([]) == []
