"""Scenes of shapes, their captions, and the oracle that reads both."""

import hashlib
import re

import pytest
import torch
from torch.nn import functional

from artok import config
from artok.data import shapes
from artok.data.drawing import SHAPES
from artok.data.shape_captions import BESIDE, TOGETHER, Request, Thing, parse, requests, word
from artok.data.shape_oracle import ATTRIBUTES, ShapesOracle
from artok.data.shape_reading import read_back
from artok.data.shape_scenes import COLOURS, KINDS, PLACES, SIZES, combinations
from artok.errors import ConfigError
from artok.images import from_uint8

SETTINGS = {
    "one": {},
    "two": {"objects": 2},
    "sizes": {"objects": [1, 2], "sizes": True},
    "held out": {"objects": [1, 2], "hold_out": 4},
}


def make(**settings):
    return config.validate(shapes.Config, settings, "x.yaml")


def wrong(split, indices, images):
    """For each attribute the number of images that are not read as their scene."""
    scene, seen = split.scene(indices), read_back(images)
    there = torch.arange(scene.shape.shape[1]) < scene.number[:, None]
    found = {
        name: int(((getattr(seen, name)[:, : there.shape[1]] != asked) & there).any(1).sum())
        for name in ("shape", "colour", "place", "size")
        if (asked := getattr(scene, name)) is not None
    }
    return found | {"number": int((seen.number != scene.number).sum()), "clear": int((~seen.clear).sum())}


def blurred(images, noise):
    """As a decoder leaves them: half softened over three pixels, with noise of so much of the range's half."""
    pixels = functional.pad(from_uint8(images), (1, 1, 1, 1), mode="replicate")
    soft = functional.avg_pool2d(pixels, 3, stride=1)
    return (soft + from_uint8(images)) / 2 + noise * torch.randn(soft.shape, generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------------------------------------- scenes


def test_the_images_of_one_shape_are_those_that_they_always_were():
    split = shapes.Config().open("train")
    examples = split.read([0, 1, 2, 9_999, 123_456])
    assert split.fingerprint == "8e35e55dce74c239"
    assert hashlib.blake2b(examples.images.numpy().tobytes(), digest_size=8).hexdigest() == "5f2fcda8b8460c87"
    assert examples.labels.tolist() == [4, 0, 3, 4, 2]


def test_a_scene_depends_on_seed_split_and_index_alone():
    for settings in SETTINGS.values():
        split = make(**settings).open("train")
        whole = split.read([7, 900_000])
        assert torch.equal(whole.images[1], split.read([900_000]).images[0])
        assert whole.captions[1] == split.read([900_000]).captions[0]
        assert not torch.equal(split.read([7]).images, make(seed=1, **settings).open("train").read([7]).images)
        assert not torch.equal(split.read([7]).images, make(**settings).open("test").read([7]).images)
    marks = [make(**settings).open("train").fingerprint for settings in SETTINGS.values()]
    assert len(set(marks)) == len(marks)


def test_as_many_shapes_as_asked_for():
    assert set(make(objects=2).open("train").scene(range(200)).number.tolist()) == {2}
    mixed = make(objects=[1, 2]).open("train").scene(range(1000)).number
    assert 400 < int((mixed == 2).sum()) < 600  # 500 and six deviations of 16
    for wrong_objects in (3, 0, []):
        with pytest.raises(ConfigError, match="objects"):
            make(objects=wrong_objects)


def test_two_shapes_never_touch():
    scene = make(objects=2, sizes=False).open("train").scene(range(4000))
    apart = (scene.centre[:, 0] - scene.centre[:, 1]).norm(dim=1) - scene.radius.sum(1)
    assert float(apart.min()) > 0
    sized = make(objects=2, sizes=True).open("train").scene(range(4000))
    assert float(((sized.centre[:, 0] - sized.centre[:, 1]).norm(dim=1) - sized.radius.sum(1)).min()) > 0


def test_grey_shapes_are_refused():
    with pytest.raises(ConfigError, match="must be 3"):
        make(channels=1)


# ---------------------------------------------------------------------------------------------- held-out combinations


@pytest.mark.parametrize("held_out", [1, 4, 12, 30])
def test_seen_and_held_out_combinations_divide_all(held_out):
    for number, twins in ((1, False), (2, False), (2, True)):
        seen, unseen = (
            {tuple(row) for row in combinations(held_out, known, number, twins).tolist()} for known in (True, False)
        )
        total = KINDS if number == 1 or twins else KINDS * (KINDS - 1)
        assert not seen & unseen and len(seen) + len(unseen) == total
    single = {kind for (kind,) in combinations(held_out, True, 1).tolist()}
    assert len(single) == KINDS - held_out
    assert {kind // len(COLOURS) for kind in single} == set(range(len(SHAPES)))
    assert {kind % len(COLOURS) for kind in single} == set(range(len(COLOURS)))


def test_the_order_of_a_pair_does_not_decide_whether_it_is_held_out():
    pairs = {tuple(row) for row in combinations(4, False, 2).tolist()}
    assert all((second, first) in pairs for first, second in pairs)
    both_known = [pair for pair in pairs if not {0, 7, 14, 21} & set(pair)]
    assert both_known and len(both_known) < len(pairs)  # pairings of kinds that are seen, and pairs of hidden kinds


def test_no_image_of_train_or_test_shows_a_combination_that_is_held_out():
    shown = {}
    for name in ("train", "test"):
        split = make(objects=[1, 2], hold_out=4).open(name)
        for known, each in ((True, split), (False, split.unseen)):
            scene = each.scene(range(3000))
            kinds = (scene.shape * len(COLOURS) + scene.colour).tolist()
            rows = zip(kinds, scene.number.tolist(), strict=True)
            shown.setdefault(known, set()).update(tuple(sorted(row[:number])) for row, number in rows)
    assert not shown[True] & shown[False] and len(shown[False]) > 50
    assert make(objects=2).open("train").unseen is None
    assert split.unseen.fingerprint != split.fingerprint and split.unseen.unseen is None
    with pytest.raises(ConfigError, match="hold_out"):
        make(hold_out=31)


# ---------------------------------------------------------------------------------------------- captions


def all_requests():
    kinds = [Thing("circle", "red"), Thing("cross", "blue", size="small"), Thing("star", None)]
    singles = [Request((thing,)) for thing in kinds]
    placed = [Request((Thing(shape, "green", place),)) for shape in SHAPES for place in PLACES]
    related = [Request((kinds[0], kinds[1]), relation) for relation in BESIDE]
    twins = [Request((thing, thing), relation) for thing in kinds for relation in (*TOGETHER, None)]
    here, there = Thing("ring", "red", PLACES[0]), Thing("ring", "red", PLACES[2])
    pairs = [Request((here, there)), Request((here, Thing("square", "red", PLACES[8]))), Request((kinds[0], kinds[1]))]
    return singles + placed + related + twins + pairs


def turned(request):
    """The same request from the other thing's side."""
    return Request(request.things[::-1], BESIDE.get(request.relation, request.relation))


def test_every_wording_is_read_as_its_request():
    for request in all_requests():
        wordings = word(request)
        assert len(set(wordings)) == len(wordings)
        for text in wordings:
            assert parse(text) in (request, turned(request)), text
            assert parse(text) == request or len(request.things) == 2
            assert parse(f"  {text.upper()}. ") == parse(text)
    assert word(Request((Thing("cross"),) * 2)) == ("two crosses", "there are two crosses")


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_captions_of_scenes_are_read_as_what_they_show(settings):
    split = make(**settings).open("train")
    scene, captions = split.scene(range(400)), split.read(range(400)).captions
    for row, (said, told) in enumerate(zip(requests(scene), captions, strict=True)):
        assert len(told) >= 3 and len(set(told)) == len(told)
        assert {parse(text) for text in told} <= {*said, *map(turned, said)}
        for request in said:
            assert len(request.things) == int(scene.number[row])
            assert all(thing.size in ((None,) if scene.size is None else SIZES) for thing in request.things)
    assert split.captioned


@pytest.mark.parametrize("text", ["", "a dog", "a red", "three red circles", "a red circle near a blue square", "red"])
def test_texts_outside_the_language_are_not_understood(text):
    assert parse(text) is None
    assert ShapesOracle().things(text) == 0
    found = ShapesOracle().match(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), [text])
    assert set(found) == {"exact", *ATTRIBUTES} and all(bool(values.isnan().all()) for values in found.values())


# ---------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_clean_images_are_read_exactly(settings):
    split = make(seed=3, **settings).open("train")
    for start in range(0, 2000, 500):
        indices = range(start, start + 500)
        found = wrong(split, indices, split.read(indices).images)
        assert not any(found.values()), found


@pytest.mark.parametrize("objects", [1, 2])
def test_blur_and_noise_of_a_decoder_are_read_through(objects):
    split = make(objects=objects).open("test")
    images = split.read(range(400)).images
    found = wrong(split, range(400), blurred(images, 0.1))
    assert all(found[name] <= 4 for name in ("shape", "colour", "place", "number")), found  # at most 1 in 100
    assert int((~read_back(blurred(images, 0.03)).clear).sum()) <= 4


def test_what_is_no_scene_is_not_clear():
    random = torch.Generator().manual_seed(0)
    images = from_uint8(shapes.Config().open("test").read(range(9)).images)
    assert not read_back(torch.randn(50, 3, 32, 32, generator=random)).clear.any()
    assert not read_back(torch.full((2, 3, 32, 32), 0.3)).clear.any()
    assert not read_back(images / 1000).clear.any()  # far too faint to see
    pairs = make(objects=2).open("test")
    upper = (pairs.scene(range(2000)).place == torch.tensor([0, 2])).all(1).nonzero().flatten().tolist()
    lower = (pairs.scene(range(2000)).place == torch.tensor([6, 8])).all(1).nonzero().flatten().tolist()
    count = min(len(upper), len(lower))
    four = pairs.read(upper[:count]).images.clone()
    four[:, :, 16:] = pairs.read(lower[:count]).images[:, :, 16:]
    assert float(read_back(four).clear.float().mean()) < 0.05


def test_shapes_read_back_as_labels():
    for objects in (1, 2):
        split = make(classes="shape_colour", objects=objects).open("train")
        examples = split.read(range(100))
        assert torch.equal(read_back(examples.images).labels("shape_colour"), examples.labels)
        names = [split.classes[label] for label in examples.labels.tolist()]
        assert all(
            name in captions[-1] or objects == 2 for name, captions in zip(names, examples.captions, strict=True)
        )
    assert torch.equal(
        read_back(examples.images).labels("shape"), make(objects=2).open("train").read(range(100)).labels
    )


# ---------------------------------------------------------------------------------------------- the oracle


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_clean_images_match_all_their_captions_and_no_others(settings):
    split = make(**settings).open("test")
    examples, oracle = split.read(range(300)), ShapesOracle()
    for turn in range(4):
        found = oracle.match(examples.images, [each[turn % len(each)] for each in examples.captions])
        assert all(bool((values[~values.isnan()] == 1).all()) for values in found.values())
    others = oracle.match(examples.images, [each[0] for each in examples.captions[1:] + examples.captions[:1]])
    assert float(others["exact"].mean()) < 0.02


def find(split, text):
    """An image that one of whose captions is this text."""
    for start in range(0, 200_000, 2000):
        for row, request in enumerate(requests(split.scene(range(start, start + 2000)))):
            if any(text in word(each) for each in request):
                return split.read([start + row]).images
    raise AssertionError(text)


def scores(images, text):
    found = ShapesOracle().match(images, [text])
    return {name: bool(values) for name, values in found.items() if not bool(values.isnan())}


def test_each_attribute_is_scored_alone():
    image = find(make(sizes=True).open("train"), "a small red circle at the top left")
    right = {"exact": True, "shape": True, "colour": True, "place": True, "size": True, "count": True}
    assert scores(image, "a small red circle at the top left") == right
    assert scores(image, "a small red ring at the top left") == right | {"shape": False, "exact": False}
    assert scores(image, "a small blue circle at the top left") == right | {"colour": False, "exact": False}
    assert scores(image, "a small red circle at the left") == right | {"place": False, "exact": False}
    assert scores(image, "a large red circle at the top left") == right | {"size": False, "exact": False}
    assert scores(image, "a circle") == {"exact": True, "shape": True, "count": True}
    assert scores(image, "two circles") == {"exact": False, "shape": False, "count": False}


def test_relations_hold_between_the_right_shapes():
    image = find(make(objects=2).open("train"), "a red circle left of a blue square")
    right = {"exact": True, "shape": True, "colour": True, "count": True, "relation": True}
    assert scores(image, "a blue square right of a red circle") == right
    assert scores(image, "a blue square left of a red circle") == right | {"relation": False, "exact": False}
    assert scores(image, "a red circle above a blue square") == right | {"relation": False, "exact": False}
    # each order gets half of the shapes and colours right: the one with the wrong relation counts
    swapped = scores(image, "a blue circle left of a red square")
    assert not swapped["relation"] and not swapped["exact"]
    assert scores(image, "a red circle") == {"exact": False, "shape": True, "colour": True, "count": False}
    twins = find(make(objects=2).open("train"), "two green stars one above the other")
    assert scores(twins, "two green stars one above the other") == right
    assert scores(twins, "two green stars side by side") == right | {"relation": False, "exact": False}
    assert scores(twins, "two red stars")["colour"] is False


def test_an_image_without_shapes_is_wrong_in_all_that_is_asked():
    empty = torch.full((1, 3, 32, 32), 30, dtype=torch.uint8)
    found = scores(empty, "a red circle left of a blue square")
    assert set(found) == {"exact", "shape", "colour", "count", "relation"} and not any(found.values())


def test_names_of_the_language_are_told_apart():
    words = [*SHAPES, *COLOURS, *PLACES, *SIZES, *BESIDE, *TOGETHER]
    assert len(set(words)) == len(words) and all(re.fullmatch("[a-z ]+", each) for each in words)
