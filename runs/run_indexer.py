"""Index a corpus with a trained retriever.

  python -m runs.run_indexer --config_path cfgs/flagfacts_mire.yaml
  python -m runs.run_indexer --config_path cfgs/flagfacts_mire.yaml --plan
  python -m runs.run_indexer --plan --documents 1000000 --vectors_per_document 80 --n_bits 2
  python -m runs.run_indexer --exp_name okvqa --mire_ckpt ckpts/mire/okvqa_gs/base_ft/mire.pth \\
      --all_blocks_file data/okvqa/all_blocks.txt --n_bits 2

A killed build goes on where it was. The index names the weights that made it and refuses the queries of others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from core.cli import dead_flag, main
from core.errors import UserError
from runs.common import (
    check_option,
    need,
    open_retriever,
    parse,
    parser,
    plan,
    states_folder,
    visual_source,
    with_lengths,
)
from runs.m2kr import DOC_MAXLEN, data_of, is_m2kr


def arguments():
    made = parser(__doc__, "python -m runs.run_indexer")
    made.add_argument("--checkpoint", help="checkpoint folder, run folder, .pth or ColBERT folder (default <run.out>)")
    made.add_argument("--device", default=None, help="auto, cpu, cuda, mps")
    made.add_argument(
        "--overwrite", action="store_true", help="replace an index of other weights or passages, once the new is built"
    )
    made.add_argument(
        "--backend", choices=["plaid", "exact", "fast-plaid", "faiss", "auto"],
        help="another index than index.name; auto: exact for few passages, otherwise plaid",
    )  # fmt: skip
    check_option(made)
    sizes = made.add_argument_group("planning")
    sizes.add_argument("--plan", action="store_true", help="estimate size, disk, time and memory, build nothing")
    sizes.add_argument("--documents", type=int, help="passages to plan for (default: the corpus of --config_path)")
    sizes.add_argument("--vectors_per_document", type=float, help="default: measured with --config_path, else 80")
    sizes.add_argument("--dim", type=int, help="dimensions of a vector (default 128; not with --config_path)")
    legacy = made.add_argument_group("flags of the original command")
    legacy.add_argument("--exp_name", help="the index goes to experiments/<exp_name>/indexes/<exp_name>.nbits=<b>")
    legacy.add_argument("--n_bits", type=int, help="bits per residual dimension: 1, 2, 4 or 8 (default 2)")
    legacy.add_argument("--n_ranks", type=int, help="accepted, without effect")
    legacy.add_argument(
        "--all_blocks_file", help="corpus: JSON lines {id, text}, CSV with kid,text, or ViD2R's JSON list"
    )
    legacy.add_argument("--colbert_ckpt", help="ColBERT folder or hub name (default ckpts/colbertv2.0)")
    legacy.add_argument("--mire_ckpt", help="MIRe .pth or checkpoint folder")
    legacy.add_argument("--xknow_ckpt", help="Ret-XKnow .pth or checkpoint folder")
    legacy.add_argument("--max_doc_len", type=int, help="tokens per passage (default 384, of M2KR 512)")
    legacy.add_argument(
        "--dataset_name",
        help="whose --all_blocks_file it is (docs/EVALUATION.md); EVQA, m2kr.EVQA and the like: M2KR's",
    )
    legacy.add_argument("--dataset_hf_path", help="M2KR: its folder (default data/m2kr), or a hub name to download")
    legacy.add_argument("--image_dir", help="fashioniq: folder of the candidates' pictures; text passages have none")
    legacy.add_argument("--kmeans_niters", type=int, help="k-means iterations (default 20)")
    return made


def run(argv: Sequence[str]) -> None:
    args = parse(arguments(), argv)
    dead_flag("--n_ranks", args.n_ranks, "one process indexes here")
    if args.dataset_name != "fashioniq":
        dead_flag("--image_dir", args.image_dir, "the corpus is text")
    if args.config_path:
        return from_config(args)
    if args.plan:
        from runs.planning import from_flags

        return from_flags(args)
    from core.device import pick_device
    from runs import original_data
    from runs.backends import with_backend
    from runs.indexing import build, index_device
    from runs.settings import IndexSection

    name = need(args.exp_name, "give --config_path, or --exp_name with --all_blocks_file.")
    own = is_m2kr(args.dataset_name) or args.dataset_name in original_data.WITH_PASSAGES
    blocks = args.dataset_name if own else args.all_blocks_file
    need(blocks, "give --all_blocks_file, the passages to index.")
    checkpoint = args.checkpoint or args.mire_ckpt or args.xknow_ckpt or args.colbert_ckpt or "ckpts/colbertv2.0"
    bits = args.n_bits or 2
    path = f"experiments/{name}/indexes/{name}.nbits={bits}"
    options = {"nbits": bits, "iterations": args.kmeans_niters or 20}
    section = with_backend(IndexSection(name="plaid", path=path, options=options), args.backend)
    if args.check:
        files = () if own else (blocks, checkpoint)
        return plan(f"index '{blocks}' with '{checkpoint}' in '{path}'", *files)
    corpus = data_of(args).corpus() if is_m2kr(blocks) else original_data.corpus(args.dataset_name, args)
    device = pick_device(args.device or "auto")
    length = args.max_doc_len or (DOC_MAXLEN if is_m2kr(blocks) else 384)
    retriever = with_lengths(open_retriever(checkpoint, device), doc_maxlen=length)
    build(retriever, corpus[: args.limit], section, path, overwrite=args.overwrite, device=index_device(device))


def from_config(args) -> None:
    import dataset
    from core.device import pick_device
    from runs.backends import with_backend
    from runs.indexing import build, index_device
    from runs.planning import from_corpus
    from runs.settings import load

    cfg = load(args.config_path, args.overrides, args.limit)
    out, section = Path(cfg.run.out), with_backend(cfg.index, args.backend)
    if args.check:
        place, checkpoint = cfg.index.path or out / "index", args.checkpoint or args.mire_ckpt or out
        return plan(f"index the passages of '{cfg.data.name}' with '{checkpoint}' in '{place}'", checkpoint)
    device = pick_device(args.device or cfg.run.device)
    retriever = open_retriever(args.checkpoint or args.mire_ckpt or out, device)
    if retriever.config.name != cfg.model.name:
        raise UserError(
            f"the checkpoint is a '{retriever.config.name}', the YAML says model.name '{cfg.model.name}'; "
            "give the checkpoint of this YAML with --checkpoint."
        )
    corpus = dataset.build(cfg.data).corpus()
    visual = visual_source(retriever, cfg.visual.cache) if any(d.images for d in corpus) else None
    path = Path(cfg.index.path or out / "index")
    if args.plan:
        return from_corpus(args, retriever, corpus, section, path, index_device(device), visual)
    states = stored_states(retriever, out)
    build(retriever, corpus, section, path, states, visual, args.overwrite, index_device(device))


def stored_states(retriever, out: Path):
    """The run's cache of frozen passage states, when it was made with this trunk and this length."""
    from core.store import Store
    from training.states import TextStates

    retriever.stage = "eval"
    key = retriever.frozen_text_key("document")
    if key is None or not (states_folder(out, key) / "manifest.json").is_file():
        return None
    return TextStates(retriever, Store(states_folder(out, key), expect=key))


if __name__ == "__main__":
    main(run)
