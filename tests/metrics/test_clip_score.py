"""CLIP score: against the published formula on a CLIP's own similarities, and what is said without a CLIP."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from helpers.text_models import tiny_clip, tiny_t5

from artok.errors import ArtokError, ConfigError
from artok.metrics.base import EvalBatch, MetricContext
from artok.metrics.clip_score import ClipScore, Config
from artok.metrics.evaluate import Evaluation
from artok.metrics.selection import MetricChoice

PROMPTS = ["a red circle", "a blue square at the top", "a green star", "a red square", "the star left of a circle"]


def pictures(seed: int, count: int = 5) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 12, 12), generator=random, dtype=torch.uint8)


def build(clip: Path) -> ClipScore:
    return Config(name=str(clip)).build(MetricContext())


def similarities(clip: Path, images: torch.Tensor) -> torch.Tensor:
    """cos (B, B) of images and prompts: the model's logits over their temperature."""
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    model = CLIPModel.from_pretrained(str(clip)).eval()
    read = AutoTokenizer.from_pretrained(str(clip))(
        [f"A photo depicts {text}" for text in PROMPTS],
        padding=True,
        truncation=True,
        max_length=12,
        return_tensors="pt",
    )
    pixels = CLIPImageProcessor.from_pretrained(str(clip))(list(images), return_tensors="pt").pixel_values
    with torch.no_grad():
        logits = model(**{key: read[key] for key in ("input_ids", "attention_mask")}, pixel_values=pixels)
        return logits.logits_per_image / model.logit_scale.exp()


def test_it_is_the_published_formula_of_each_image_and_its_caption(clip: Path) -> None:
    images = pictures(0)
    cosine = similarities(clip, images)
    assert (cosine < 0).any() and (cosine.diagonal() > 0).any()
    cosine = cosine.clamp(min=0)
    metric = build(clip)
    metric.update(EvalBatch(prompted=images, prompts=PROMPTS))
    found = metric.compute()
    assert found["clip_score"] == pytest.approx(2.5 * float(cosine.diagonal().mean()), rel=1e-5)
    others = cosine[~torch.eye(5, dtype=torch.bool)]
    assert found["clip_score/shuffled"] == pytest.approx(2.5 * float(others.mean()), rel=1e-5)
    assert found.keys() == {"clip_score", "clip_score/shuffled"} and metric.count == 5


def test_held_out_images_are_its_floor_and_unseen_combinations_stand_apart(clip: Path) -> None:
    evaluation = Evaluation([build(clip)])
    real, made = pictures(1), pictures(0)
    evaluation.update(EvalBatch(images=real, prompts=PROMPTS))
    evaluation.update(EvalBatch(prompted=made, prompts=PROMPTS))
    evaluation.update(EvalBatch(prompted=real, prompts=PROMPTS, unseen=torch.ones(5, dtype=torch.bool)))
    found = {each.name: each for each in evaluation.results("model", seed=0).measurements}
    assert found.keys() == {"clip_score", "clip_score/shuffled", "clip_score/unseen"}
    assert found["clip_score"].floor == found["clip_score/unseen"].value != found["clip_score"].value
    assert found["clip_score"].n == 5 and found["clip_score"].reference.startswith(str(clip))


def test_images_without_a_caption_do_not_count(clip: Path) -> None:
    images, one, other = pictures(0), build(clip), build(clip)
    one.update(EvalBatch(prompted=images, prompts=["", *PROMPTS[1:4], "  "]))
    other.update(EvalBatch(prompted=images[1:4], prompts=PROMPTS[1:4]))
    assert one.compute() == pytest.approx(other.compute(), rel=1e-5) and one.count == 3
    with pytest.raises(ArtokError, match="5 images for 4 prompts"):
        one.update(EvalBatch(prompted=images, prompts=PROMPTS[:4]))


def test_other_weights_are_another_reference(clip: Path, tmp_path: Path) -> None:
    other = tiny_clip(tmp_path)
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(str(other))
    model.visual_projection.weight.data.mul_(2)
    model.save_pretrained(other)
    assert build(clip).reference.rpartition(", ")[2] != build(other).reference.rpartition(", ")[2]


def test_without_a_clip_one_sentence_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import CLIPTextModel

    seen = EvalBatch(prompted=pictures(0), prompts=PROMPTS)
    for name in (str(tmp_path / "none"), str(tiny_t5(tmp_path))):
        with pytest.raises(ConfigError, match=r"no CLIP in .*which the CLIP score needs: name a folder") as caught:
            Config(name=name).build(MetricContext()).update(seen)
        assert "\n" not in str(caught.value)
    half = tiny_clip(tmp_path / "half")
    CLIPTextModel.from_pretrained(str(half)).save_pretrained(half)
    with pytest.raises(ConfigError, match=r"half.*which the CLIP score needs"):
        Config(name=str(half)).build(MetricContext()).update(seen)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'artok\[text\]'"):
        Config(name="another").build(MetricContext()).update(seen)


def test_it_is_computed_where_it_is_named_alone() -> None:
    fields = frozenset({"prompted", "prompts"})
    assert MetricChoice().select(MetricContext(), fields) == []
    named = MetricChoice.model_validate({"metrics": ["clip_score"]})
    assert [config.kind for config in named.select(MetricContext(), fields)] == ["clip_score"]
