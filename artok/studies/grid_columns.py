"""What a sweep measures of each cell: the figures' names, units, meaning, and where they come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from artok.evaluation.code_usage import perturbed_name
from artok.metrics.results import Results

Side = Literal["tokenizer", "generator"]
Better = Literal["higher", "lower", ""]


@dataclass(frozen=True)
class Quantity:
    """name: as in tables, results.json and the CSV. source: how the measurement or the cost in the results begins,
    or an empty text for what the sweep measures itself. timed: depends on the machine and its load, so that it differs
    from one run of a study to the next."""

    name: str
    side: Side
    source: str
    better: Better
    unit: str
    text: str
    timed: bool = False

    @property
    def head(self) -> str:
        """The name with its unit."""
        return f"{self.name}, {self.unit}" if self.unit else self.name


TOKENS = Quantity("tokens", "tokenizer", "tokens an image", "lower", "", "Codes an image: what a generator models.")
BITS = Quantity("bits", "tokenizer", "bits an image", "lower", "", "Bits an image at a fixed code length.")
BITS_PER_PIXEL = Quantity("bits a pixel", "tokenizer", "bits a pixel", "lower", "", "The same for each pixel.")
PSNR = Quantity("PSNR", "tokenizer", "PSNR", "higher", "dB", "Of reconstructions of held-out images.")
SSIM = Quantity("SSIM", "tokenizer", "SSIM", "higher", "", "Structural similarity of reconstructions.")
USAGE = Quantity(
    "codes in use", "tokenizer", "codebook usage", "higher", "share", "Codes that the images measured use."
)
PERPLEXITY = Quantity("perplexity", "tokenizer", "perplexity", "higher", "codes", "Codes in effective use.")
ENTROPY = Quantity(
    "entropy by position",
    "tokenizer",
    "code entropy by position",
    "",
    "bits",
    "Of the codes at one position, averaged; held-out images bound it to log2 of their number.",
)
TOKENIZER_SIZE = Quantity("tokenizer parameters", "tokenizer", "parameters", "", "", "")
TOKENIZER_TIME = Quantity(
    "tokenizer training", "tokenizer", "", "", "core-seconds", "Processor time of the training loop.", timed=True
)
SIZE = Quantity("generator parameters", "generator", "parameters", "", "", "")
IMAGES = Quantity("images trained on", "generator", "", "", "", "Images that the generator's budget buys.")
FLOPS = Quantity("training TFLOPs", "generator", "", "", "", "Floating-point operations of the generator's training.")
RATE = Quantity(
    "bits/dim (rate)",
    "generator",
    "bits/dim (rate)",
    "",
    "bits",
    "Likelihood of held-out tokens as bits for each number of the image: a rate, lower also where tokens say less.",
)
RECALL = Quantity("recall", "generator", "recall", "higher", "share", "Real images that lie where samples do.")
CONSISTENCY = Quantity(
    "class consistency", "generator", "class consistency", "higher", "share", "Samples of the class asked for."
)
PASSES = Quantity("passes", "generator", "network passes", "lower", "", "Network passes a sample.")
WORK = Quantity("MFLOPs a sample", "generator", "MFLOPs an image", "lower", "", "Operations to make one image.")
LATENCY = Quantity(
    "latency", "generator", "latency at batch 1", "lower", "ms", "Median time to one image, decoded.", timed=True
)
SPEED = Quantity("images a second", "generator", "images a second", "higher", "", "Throughput at batch 64.", timed=True)
MEMORY = Quantity(
    "memory", "generator", "", "lower", "MB an image", "At the peak of making 64 images, above that before.", timed=True
)
GENERATOR_TIME = Quantity(
    "generator training", "generator", "", "", "core-seconds", "Processor time of the training loop.", timed=True
)


def distance_name(extractor: str) -> str:
    """As the results call the Fréchet distance: FID for the published Inception's features only."""
    return "FID" if extractor.split("@")[0] == "inception" else f"FD[{extractor.split('@')[0]}]"


def reconstruction_distance(extractor: str) -> Quantity:
    name = distance_name(extractor)
    text = "Fréchet distance of reconstructions to held-out images."
    return Quantity(f"r{name}", "tokenizer", name, "lower", "", text)


def perturbed_distance(extractor: str, share: float) -> Quantity:
    name = perturbed_name(distance_name(extractor), share)
    text = f"The same with {100 * share:.3g}% of the codes replaced by near neighbours in the codebook."
    return Quantity(name, "tokenizer", name, "lower", "", text)


def generation_distance(extractor: str) -> Quantity:
    name = distance_name(extractor)
    return Quantity(name, "generator", name, "lower", "", "Fréchet distance of samples to held-out images.")


def distances(extractor: str) -> tuple[Quantity, Quantity]:
    """Of reconstructions, and of samples."""
    return reconstruction_distance(extractor), generation_distance(extractor)


def quantities(extractor: str, replaced: Sequence[float]) -> list[Quantity]:
    """All that a sweep reports, in the order of its tables."""
    return [
        TOKENS,
        BITS,
        BITS_PER_PIXEL,
        reconstruction_distance(extractor),
        *(perturbed_distance(extractor, share) for share in replaced),
        PSNR,
        SSIM,
        USAGE,
        PERPLEXITY,
        ENTROPY,
        TOKENIZER_SIZE,
        TOKENIZER_TIME,
        generation_distance(extractor),
        RATE,
        RECALL,
        CONSISTENCY,
        IMAGES,
        FLOPS,
        SIZE,
        PASSES,
        WORK,
        LATENCY,
        SPEED,
        MEMORY,
        GENERATOR_TIME,
    ]


def values_of(
    wanted: Sequence[Quantity], results: Mapping[Side, Results], own: Mapping[str, float]
) -> Iterator[tuple[str, float]]:
    """Name and value of every quantity that there is: of the results of both sides, or of the sweep's `own`."""
    for quantity in wanted:
        found = own.get(quantity.name)
        if quantity.source and quantity.side in results:
            result = results[quantity.side]
            entries = [(entry.name, entry.value) for entry in result.measurements] + list(result.cost.items())
            found = next((value for name, value in entries if name.startswith(quantity.source)), None)
        if found is not None:
            yield quantity.name, found
