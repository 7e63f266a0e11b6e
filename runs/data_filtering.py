"""ViD2R, step 1 alone, by the name and with the flags that MIRe gave it: the text rules of runs.neural_filtering.

  python -m runs.data_filtering --data_paths llava_v1_5_mix665k.json lvis_instruct4v_220k.json \\
      --save_path data/vid2r/vid2r_wo_conversion.json
  python -m runs.data_filtering ... --rules legacy-mire       # the very records that MIRe's script wrote

The same as python -m runs.neural_filtering --skip_neural.
"""

from __future__ import annotations

from collections.abc import Sequence

from core.cli import main
from runs import neural_filtering


def run(argv: Sequence[str]) -> None:
    made = neural_filtering.arguments("python -m runs.data_filtering", __doc__)
    made.set_defaults(skip_neural=True)
    neural_filtering.run(argv, made)


if __name__ == "__main__":
    main(run)
