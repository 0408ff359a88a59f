"""Hugging Face folders of a few kilobytes, made in memory: a pretrained model and models moved away from it."""

import json

import torch
import transformers

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "good",
    "bad",
    "film",
    "is",
    "what",
    "who",
    "yes",
    "no",
    "a",
    "photo",
    "of",
]


def tokenizer(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    made = transformers.BertTokenizer(str(folder / "vocab.txt"))
    made.save_pretrained(folder)
    return made


def moved(model, seed, size=0.05):
    """Every parameter moved at random, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return model


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def bert_folders(root, classes=(2, 3)):
    """``pretrained`` and ``one``, ``two`` with heads of two and three classes."""
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
    )
    base = seeded(lambda: transformers.BertForSequenceClassification(config))
    base.save_pretrained(root / "pretrained")
    tokenizer(root / "pretrained")
    for number, (name, count) in enumerate(zip(("one", "two"), classes), 1):
        config.num_labels = count
        tuned = seeded(lambda: transformers.BertForSequenceClassification(config))
        tuned.bert.load_state_dict(base.bert.state_dict())
        moved(tuned, number).save_pretrained(root / name)


def vit_folders(root):
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=16, patch_size=8
    )
    base = seeded(lambda: transformers.ViTForImageClassification(config))
    base.save_pretrained(root / "pretrained")
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}
    (root / "pretrained" / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    for number, name in enumerate(("one", "two"), 1):
        tuned = seeded(lambda: transformers.ViTForImageClassification(config))
        moved(tuned, number).save_pretrained(root / name)


def clip_folders(root):
    text = {
        "vocab_size": len(WORDS),
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 16,
        "eos_token_id": 3,
        "projection_dim": 8,
    }
    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "image_size": 16,
        "patch_size": 8,
        "projection_dim": 8,
    }
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    whole = seeded(lambda: transformers.CLIPModel(config))
    whole.save_pretrained(root / "pretrained")
    processor = transformers.CLIPProcessor(
        transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer(root / "words"),
    )
    processor.save_pretrained(root / "pretrained")
    for number, name in enumerate(("one", "two"), 1):
        tuned = transformers.CLIPVisionModel.from_pretrained(root / "pretrained")
        moved(tuned, number).save_pretrained(root / name)


def t5_folders(root, *, lora=False):
    config = transformers.T5Config(
        vocab_size=len(WORDS),
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=3,
    )
    base = seeded(lambda: transformers.T5ForConditionalGeneration(config))
    base.save_pretrained(root / "pretrained")
    tokenizer(root / "pretrained")
    for number, name in enumerate(("one", "two"), 1):
        tuned = transformers.T5ForConditionalGeneration.from_pretrained(root / "pretrained")
        if lora:
            import peft

            tuned = peft.get_peft_model(tuned, peft.LoraConfig(r=2, target_modules=["q", "v"]))
        moved(tuned, number).save_pretrained(root / name)


def text_table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(f"{label}\t{text}" for label, text in rows) + "\n", encoding="utf-8")
