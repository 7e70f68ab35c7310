from vbd.rejects import reject, reject_reasons


def test_reasons_are_counted_whatever_their_values() -> None:
    rejects = [
        reject("train.csv", 7, "x_min 30 >= x_max 10"),
        reject("a.png", 0, "truncated or corrupt PNG"),
        reject("train.csv", 9, "x_min 3.5 >= x_max 1"),
        reject("train.csv", 11, "unknown class '77 Broken leg'"),
        reject("train.csv", 12, "unknown class 'x'"),
        reject("train.csv", 13, "unknown class 'y'"),
    ]
    assert reject_reasons(rejects) == [
        ("unknown class #", 3, "train.csv:11: unknown class '77 Broken leg'"),
        ("x_min # >= x_max #", 2, "train.csv:7: x_min 30 >= x_max 10"),
        ("truncated or corrupt PNG", 1, "a.png: truncated or corrupt PNG"),
    ]
    assert reject_reasons([]) == []
