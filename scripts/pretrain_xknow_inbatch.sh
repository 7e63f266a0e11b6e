#!/usr/bin/env bash
# Ret-XKnow phase A as published, then zero-shot evaluation with the text rows added (scripts/inbatch.sh has all options):
#   bash scripts/pretrain_xknow_inbatch.sh                                       # on as many GPUs as there are
#   NPROC=8 bash scripts/pretrain_xknow_inbatch.sh model.kernel_size=3
#   bash scripts/pretrain_xknow_inbatch.sh --check
CONFIG=${CONFIG:-cfgs/xknow_vid2r.yaml}
ZERO_SHOT=${ZERO_SHOT-cfgs/xknow_okvqa_gs.yaml cfgs/xknow_okvqa.yaml cfgs/xknow_remuq.yaml cfgs/xknow_aokvqa.yaml}
source "$(dirname "$0")/inbatch.sh"
inbatch "$@"
