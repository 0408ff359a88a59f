"""Small data sets in the three formats, written to disk for tests."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (40, 30)  # width, height


def picture(path: Path, size=SIZE, seed=0) -> None:
    """A noisy picture; another seed gives another one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def voc_object(name, box, difficult=0) -> str:
    edges = "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box))
    return f"<object>\n<name>{name}</name>\n<difficult>{difficult}</difficult>\n<bndbox>{edges}</bndbox>\n</object>\n"


def voc_xml(objects, size=SIZE) -> str:
    stated = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>\n"
    return f"<annotation>\n{stated}{''.join(voc_object(*item) for item in objects)}</annotation>\n"


def voc_tree(folder: Path, images, splits=None) -> Path:
    """images: stem -> objects (name, box, difficult); splits: name -> stems."""
    for seed, (stem, objects) in enumerate(images.items()):
        picture(folder / "JPEGImages" / f"{stem}.jpg", seed=seed + 1000 * len(folder.as_posix()))
        (folder / "Annotations").mkdir(parents=True, exist_ok=True)
        (folder / "Annotations" / f"{stem}.xml").write_text(voc_xml(objects))
    for name, stems in (splits or {}).items():
        lists = folder / "ImageSets" / "Main"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{name}.txt").write_text("".join(f"{stem}\n" for stem in stems))
    return folder


def coco_tree(folder: Path, images, categories) -> Path:
    """images: file name -> annotations (category id, bbox, iscrowd); categories: id -> name."""
    entries, annotations = [], []
    for number, (name, boxes) in enumerate(images.items(), start=1):
        picture(folder / "images" / name, seed=number)
        entries.append({"id": number, "file_name": name, "width": SIZE[0], "height": SIZE[1]})
        for category, bbox, crowd in boxes:
            annotations.append(
                {
                    "id": len(annotations) + 7,
                    "image_id": number,
                    "category_id": category,
                    "bbox": bbox,
                    "iscrowd": crowd,
                }
            )
    named = [{"id": key, "name": name} for key, name in categories.items()]
    document = {"images": entries, "annotations": annotations, "categories": named}
    (folder / "instances.json").write_text(json.dumps(document))
    return folder
