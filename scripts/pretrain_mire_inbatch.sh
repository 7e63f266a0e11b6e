#!/usr/bin/env bash
# MIRe phase A as published, then zero-shot evaluation with the text rows added (scripts/inbatch.sh has all options):
#   bash scripts/pretrain_mire_inbatch.sh                                        # on as many GPUs as there are
#   CONFIG=cfgs/sentmire_vid2r.yaml NPROC=4 bash scripts/pretrain_mire_inbatch.sh train.precision=bf16
#   bash scripts/pretrain_mire_inbatch.sh --check
CONFIG=${CONFIG:-cfgs/mire_vid2r.yaml}
ZERO_SHOT=${ZERO_SHOT-cfgs/mire_okvqa_gs.yaml cfgs/mire_okvqa_wiki.yaml cfgs/mire_remuq.yaml cfgs/mire_aokvqa.yaml cfgs/mire_evqa.yaml}
source "$(dirname "$0")/inbatch.sh"
inbatch "$@"
