"""A three-task run in the form of results.json, small enough to work every index out by hand."""

CLASSES = {1: ["a"], 2: ["b", "c"], 3: ["d"]}
DOMAINS = {1: "X", 2: "Y", 3: "Z"}


def entry(domain, classes, value, **more):
    # mAP50-95 is not a multiple of mAP50, so that mixing the two shows.
    wide = None if value is None else round(value**2, 6)
    return {"domain": domain, "classes": classes, "map50": value, "map50_95": wide, **more}


def grid(rows):
    """rows: domain number -> values for the classes of tasks 1, 2, 3 in that domain."""
    return [
        entry(DOMAINS[domain], CLASSES[task], value, task=task)
        for domain, values in rows.items()
        for task, value in enumerate(values, start=1)
    ]


def class_ap(domain, **values):
    return [
        {
            "domain": domain,
            "class": name,
            "ap50": value,
            "ap50_95": value and value / 2,
            "boxes": 0 if value is None else 7,
        }
        for name, value in values.items()
    ]


def three_tasks():
    """A run X[a] → Y[b c] → Z[d] whose numbers all differ: no other choice of terms gives the same indices."""
    stages = [
        {
            "task": 1,
            "slices": [entry("X", ["a"], 0.80, role="new")],
            "grid": grid({1: (0.80, None, None), 2: (0.41, None, None), 3: (0.33, None, None)}),
            "class_ap": class_ap("X", a=0.80) + class_ap("Y", a=0.41) + class_ap("Z", a=0.33),
        },
        {
            "task": 2,
            "slices": [
                entry("Y", ["b", "c"], 0.70, role="new"),
                entry("X", ["a"], 0.83, role="old"),
                entry("X", ["b", "c"], 0.37, role="unseen"),
                entry("Y", ["a"], 0.46, role="unseen"),
            ],
            "grid": grid({1: (0.83, 0.37, None), 2: (0.46, 0.70, None), 3: (0.29, 0.44, None)}),
            "class_ap": class_ap("Z", a=0.29, b=0.52, c=0.36),
        },
        {
            "task": 3,
            "slices": [
                entry("Z", ["d"], 0.62, role="new"),
                entry("X", ["a"], 0.64, role="old"),
                entry("Y", ["b", "c"], 0.49, role="old"),
                entry("X", ["b", "c"], 0.31, role="unseen"),
                entry("Y", ["a"], 0.43, role="unseen"),
                entry("Z", ["a", "b", "c"], 0.27, role="unseen"),
            ],
            "grid": grid({1: (0.64, 0.31, 0.22), 2: (0.43, 0.49, 0.26), 3: (0.24, 0.28, 0.62)}),
            "class_ap": class_ap("Z", a=0.24, b=0.30, c=0.26, d=0.62),
        },
    ]
    reference = {
        "kind": "joint",
        "slices": [
            entry("X", ["b", "c"], 0.85),
            entry("Y", ["a"], 0.87),
            entry("Z", ["a", "b", "c"], 0.79),
            entry("Y", ["b", "c"], 0.90),
            entry("Z", ["d"], 0.77),
        ],
        "grid": grid({1: (0.95, 0.85, 0.81), 2: (0.87, 0.90, 0.83), 3: (0.78, 0.82, 0.77)}),
    }
    tasks = [{"task": number, "domain": DOMAINS[number], "classes": CLASSES[number]} for number in CLASSES]
    return {"method": "duet", "series": {"tasks": tasks}, "stages": stages, "reference": reference}
