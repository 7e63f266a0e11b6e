"""Hard negatives by the name and with the flags that Ret-XKnow gave them; runs.mine_negatives is for any data set.

  python -m runs.sample_hard_negative --dataset_name okvqa_gs --anno_file retriever_train.json \\
      --all_blocks_file okvqa_full_clean_corpus.csv --index_name okvqa_gs.nbits=2 --colbert_ckpt ckpts/colbertv2.0 \\
      --save_path retriever_train_w_negs.json

The first --topk passages without an answer; with fewer than 32, the last ones found are added, as there (a passage may
then hold an answer, or stand twice; runs.mine_negatives leaves such ones out). Without --xknow_ckpt the questions are
searched without their images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from core.cli import main
from core.errors import UserError
from runs.common import at_least, need, parse, parser, plan
from runs.recipe_options import job_options

LEAST, QUERY_MAXLEN = 32, 64
KNOWN = ("okvqa_gs", "remuq")


def arguments():
    made = parser(__doc__, "python -m runs.sample_hard_negative", config=False)
    made.add_argument("--colbert_ckpt", default="ckpts/colbertv2.0", help="ColBERT folder: text only")
    made.add_argument("--xknow_ckpt", help="Ret-XKnow or MIRe .pth: questions with their images")
    made.add_argument("--index_name", default="okvqa.nbits=2", help="<experiment>.nbits=<b>, as run_indexer wrote it")
    made.add_argument("--index", help="index folder (default experiments/<experiment>/indexes/<index_name>)")
    made.add_argument("--anno_file", help="questions with ctxs and answers")
    made.add_argument("--all_blocks_file", help="passages, CSV with kid and text")
    made.add_argument("--save_path", default="results/train_hard.json", help="(%(default)s)")
    made.add_argument("--image_dir", help="folder of the images")
    made.add_argument("--dataset_name", default="okvqa", help="okvqa_gs or remuq")
    made.add_argument("--topk", type=int, default=150, help="passages that are retrieved (%(default)s)")
    job_options(made)
    return made


def run(argv: Sequence[str]) -> None:
    args = parse(arguments(), argv)
    if args.dataset_name not in KNOWN:
        raise UserError(
            f"--dataset_name {args.dataset_name}: there are {', '.join(KNOWN)}; for other data sets "
            "python -m runs.mine_negatives --config_path ..."
        )
    at_least(1, topk=args.topk)
    anno = need(args.anno_file, "give --anno_file, the questions.")
    blocks = need(args.all_blocks_file, "give --all_blocks_file, the passages.")
    checkpoint = args.xknow_ckpt or args.colbert_ckpt
    folder = args.index or Path("experiments") / args.index_name.split(".")[0] / "indexes" / args.index_name
    if args.check:
        return plan(f"mine negatives of '{anno}' in the index '{folder}'", anno, blocks, checkpoint, folder)
    import dataset
    from core.config import check
    from core.device import pick_device
    from index import open_index
    from runs import recipe, shares
    from runs.common import open_retriever, with_lengths
    from runs.indexing import index_device
    from runs.recipe_negatives import Mining, mine

    section = {"name": args.dataset_name, "path": anno, "passages": blocks, "limit": args.limit}
    module = dataset.module(args.dataset_name)
    if args.image_dir is not None and "image_dir" in module.Config.model_fields:
        section["image_dir"] = args.image_dir
    data = dataset.build(check(module.Config, section, "data"))
    with recipe.working(args.save_path, args.device):
        device = pick_device(args.device or "auto")
        retriever = open_retriever(checkpoint, device)
        most = retriever.text.positions or QUERY_MAXLEN
        index = open_index(folder, device=index_device(device))
        length = index.manifest["encoder"].get("doc_maxlen", retriever.config.eval.doc_maxlen)
        with_lengths(retriever, query_maxlen=min(QUERY_MAXLEN, most), doc_maxlen=length)
        index = open_index(folder, encoder=retriever.identity(), device=index_device(device))
        job = {"command": "sample_hard_negative", "data": section, "weights": retriever.identity(),
               "topk": args.topk}  # fmt: skip
        work = recipe.Work(args.save_path, job, shares.shard_of(args.shard), args.overwrite)
        mining = Mining(data, "train", retriever, index, text_only=args.xknow_ckpt is None)
        mine(mining, work, args.topk, LEAST, "legacy", 64)


if __name__ == "__main__":
    main(run)
