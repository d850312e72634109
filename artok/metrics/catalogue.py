"""What every measured value is: its group, direction and meaning in one line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from artok.metrics.results import Measurement, Results

DISTANCE = ("FD[", "FID")  # how the name of a Fréchet distance begins

Better = Literal["higher", "lower", "at the floor", ""]

GROUPS = (
    "Reconstruction",
    "Codebook",
    "Quality",
    "Diversity",
    "Fidelity to the condition",
    "Memorisation",
    "Likelihood",
    "Cost",
    "Other",
)


@dataclass(frozen=True)
class Explained:
    """better: which values are to be preferred, or an empty text where that depends on the purpose."""

    group: str
    better: Better
    text: str


METRICS = {  # by how the name begins; the longest that fits counts
    "PSNR": Explained("Reconstruction", "higher", "Peak signal-to-noise ratio in dB; 6 dB more halve the error."),
    "SSIM": Explained("Reconstruction", "higher", "Structural similarity: local contrast and shape, 1 when equal."),
    "L1": Explained("Reconstruction", "lower", "Mean absolute error of pixels that span -1 to 1."),
    "codes used": Explained("Codebook", "higher", "Different codes that the held-out images use."),
    "codebook usage": Explained("Codebook", "higher", "The same as a share of the codebook."),
    "dead codes": Explained("Codebook", "lower", "Codes that no held-out image uses."),
    "perplexity": Explained("Codebook", "higher", "Codes in effective use: 2 to the entropy of their frequencies."),
    "code entropy": Explained("Codebook", "higher", "Information of a code, over all positions."),
    "code entropy by position": Explained(
        "Codebook", "", "The same at one position, averaged: lower, as what a position shows is partly known."
    ),
    "FD[": Explained("Quality", "lower", "Fréchet distance between the features of these images and of held-out ones."),
    "FID": Explained("Quality", "lower", "Fréchet distance in the published Inception's features."),
    "KID": Explained("Quality", "lower", "Kernel distance of the same features; unbiased, so it can fall below 0."),
    "precision": Explained("Quality", "higher", "Share of these images that lie where real ones do."),
    "density": Explained("Quality", "higher", "How many real neighbourhoods an image lies in, 1 when as real ones do."),
    "recall": Explained("Diversity", "higher", "Share of real images that lie where these do."),
    "coverage": Explained("Diversity", "higher", "Share of real images with one of these among their neighbours."),
    "classes covered": Explained("Diversity", "higher", "Share of classes that the classifier finds often enough."),
    "modes covered": Explained(
        "Diversity", "higher", "Of the kinds of image that the data have, those among the samples; the floor is chance."
    ),
    "KL of modes": Explained(
        "Diversity", "lower", "How far the shares of those kinds are from the data's, in nats; the floor is chance."
    ),
    "class consistency": Explained(
        "Fidelity to the condition",
        "higher",
        "Share that the classifier takes for the class asked for. It saturates: a check, not a ranking.",
    ),
    "nearest training image": Explained(
        "Memorisation",
        "at the floor",
        "Median pixel distance to the nearest training image. Blurred images lie nearer to all images than real ones.",
    ),
    "learned by heart": Explained(
        "Memorisation",
        "lower",
        "Share of samples that are copies: how often a training image is nearest. The floor is the most by chance.",
    ),
    "nats/token": Explained("Likelihood", "lower", "Surprise at a held-out token, given the class."),
    "nats/token (train)": Explained(
        "Likelihood", "", "The same on training images: far lower than held out means learned by heart."
    ),
    "bits/dim (rate)": Explained(
        "Likelihood", "lower", "The same as the rate of a lossy code, in bits for each number of the image."
    ),
    "bits/dim (rate) (train)": Explained("Likelihood", "", "The same on training images."),
    "tokens an image": Explained("Cost", "lower", "What a generator has to model."),
    "bits an image": Explained("Cost", "lower", "At a fixed code length."),
    "bits a pixel": Explained("Cost", "lower", "At a fixed code length."),
    "parameters": Explained("Cost", "", "Trained numbers, shared ones counted once."),
    "network passes": Explained("Cost", "lower", "Passes for one sample; both halves of guidance count as one."),
    "MFLOPs an image": Explained("Cost", "lower", "Millions of floating-point operations; a multiply-add is two."),
    "latency at batch 1": Explained("Cost", "lower", "Median time to one image, decoded, where it was evaluated."),
    "images a second": Explained("Cost", "higher", "Throughput, decoded, where it was evaluated."),
    "best batch": Explained("Cost", "", "The batch, of those tried, with that throughput."),
    "peak memory an image (MB)": Explained("Cost", "lower", "Tensors alive at once while it is made, weights aside."),
    "images trained on": Explained("Cost", "", "By the generator, images that come again counted again."),
    "training TFLOPs": Explained("Cost", "lower", "Operations of the generator's training, forward and backward."),
    "training core-seconds": Explained("Cost", "lower", "Processor time of the generator's training, on average."),
}
UNKNOWN = Explained("Other", "", "")


def explain(name: str) -> Explained:
    """What a metric means, found by how its name begins."""
    fitting = [known for known in METRICS if name.startswith(known)]
    return METRICS[max(fitting, key=len)] if fitting else UNKNOWN


def measured(results: Results, *beginnings: str) -> Measurement | None:
    """The first measurement whose name begins so."""
    return next((entry for entry in results.measurements if entry.name.startswith(beginnings)), None)
