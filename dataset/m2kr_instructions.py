"""The instruction templates that PreFLMR's authors draw from, per subset of M2KR. A repeated one is twice as likely.

Subsets that are not here (CC, MSMARCO) have only the instruction that each of their rows stores.
"""

from __future__ import annotations

QUESTION = (
    "Using the provided image, obtain documents that address the subsequent question:",
    "Retrieve documents that provide an answer to the question alongside the image:",
    "Extract documents linked to the question provided in conjunction with the image:",
    "Utilizing the given image, obtain documents that respond to the following question:",
    "Using the given image, access documents that provide insights into the following question:",
    "Obtain documents that correspond to the inquiry alongside the provided image:",
    "With the provided image, gather documents that offer a solution to the question:",
    "Utilizing the given image, obtain documents that respond to the following question:",
)
IMAGE = (
    "Identify the document that is connected to this image.:",
    "Provide information about the document linked to this image.:",
    "Please describe the document that corresponds to this image.:",
    "What is the document that this image is related to?:",
    "Could you elucidate the document associated with this image?:",
    "Describe the document that accompanies this image.:",
    "Please give information on the document that goes with this image.:",
    "What document is represented by this image?:",
    "Identify the document that this image pertains to.:",
)
CONVERSATION = (
    "Provide a brief description of the image along with the following question:",
    "Provide a concise explanation of the image along with the following question:",
)

TEMPLATES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("OVEN", "KVQA", "OKVQA", "Infoseek", "EVQA"), QUESTION),
    **dict.fromkeys(("WIT", "IGLUE"), IMAGE),
    "LLaVA": CONVERSATION,
}
