#!/usr/bin/env bash
# MIRe phase B as published, from the weights of phase A (scripts/inbatch.sh has all options):
#   bash scripts/finetune_mire_inbatch.sh
#   CONFIG=cfgs/mire_remuq.yaml NPROC=4 bash scripts/finetune_mire_inbatch.sh run.init=ckpts/mire/mire_pretrained.pth
#   bash scripts/finetune_mire_inbatch.sh --check
CONFIG=${CONFIG:-cfgs/mire_okvqa_gs.yaml}
source "$(dirname "$0")/inbatch.sh"
inbatch "$@"
