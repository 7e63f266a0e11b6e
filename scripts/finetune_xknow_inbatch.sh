#!/usr/bin/env bash
# Ret-XKnow phase B as published, from the weights of phase A (scripts/inbatch.sh has all options):
#   bash scripts/finetune_xknow_inbatch.sh
#   CONFIG=cfgs/xknow_okvqa_gs_hard.yaml NPROC=8 bash scripts/finetune_xknow_inbatch.sh
#   bash scripts/finetune_xknow_inbatch.sh --check
CONFIG=${CONFIG:-cfgs/xknow_okvqa_gs.yaml}
source "$(dirname "$0")/inbatch.sh"
inbatch "$@"
