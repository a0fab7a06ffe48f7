"""English spelling to sound after an hour on two cores: near the published Transformer figure.

Published: 5.23 % phoneme and 22.1 % word error (Yolchuyeva, Nemeth & Gyires-Toth 2019, "Transformer based Grapheme-to-Phoneme
Conversion", Interspeech 2019, on CMUdict 0.7b). The usual split there has some 107,000 words to learn from and 12,000 to test on; here
a fixed twentieth of the words (6,409) is tested on, so we train on some 12 % more words and our test words are others.

    python recipes/pronounce_hour.py && plait eval runs/pronounce-hour
"""

from pathlib import Path

from plait.verbs.train import Train

recipe = Train(
    task="translation",
    data=["cmudict"],
    minutes=60,
    preset="modern-medium",
    dropout=0.1,  # without any, the training loss fell far below the validation loss in five epochs (docs/log.md)
    batch_tokens=4096,
    out=Path("runs/pronounce-hour"),
)

if __name__ == "__main__":
    print(recipe.run())
