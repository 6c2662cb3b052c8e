"""Build a configuration's token store, or find it, and summarise it. python -m data.prepare --config FILE [key.sub=value
...]"""

from common.command import ArgumentParser, exit_status
from common.errors import one_line

from .store import TokenStore, open_store


def summary(store: TokenStore) -> str:
    """A few lines: where the store is, and what is in it."""
    manifest = store.manifest
    tokens = len(store.train.ids) + len(store.validation.ids)
    if manifest["bytes"] is None:  # tokenised elsewhere
        corpus, size, rate = "the ids are in the files below", "", ""
    else:
        corpus = f"text sha256 {manifest['text_sha256'][:16]}"
        size, rate = f"{manifest['bytes'] / 1e6:.2f} MB in ", f", {manifest['bytes'] / tokens:.2f} bytes per token"
    lines = [
        f"store       {store.path}",
        f"corpus      {manifest['data']['kind']}, {corpus}",
        f"text        {size}{manifest['documents']:,} documents",
        f"vocabulary  {store.vocab_size:,} tokens{rate}",
    ]
    for name, counts in manifest["splits"].items():
        share = counts["tokens"] / tokens
        lines.append(f"{name:<12}{counts['tokens']:,} tokens in {counts['documents']:,} documents ({share:.2%})")
    lines.append("sources")
    lines += [f"  {line}" for line in _sources(manifest)]
    return "\n".join(map(one_line, lines))


def _sources(manifest: dict) -> list[str]:
    source = manifest["source"]
    if "packages" in source:
        packages = sorted(source["packages"].items(), key=lambda item: -item[1]["bytes"])
        return [
            f"{name:<16} {counts['version']:<14} {counts['bytes'] / 1e6:6.2f} MB  {counts['documents']:5} documents  "
            f"{counts['files_not_parsed']} of {counts['files']} files not parsed"
            for name, counts in packages
        ]
    if "files" in source:
        return [f"{file['path']}  {file['size'] / 1e6:.2f} MB" for file in source["files"]]
    if "grammar" in source:
        sets = ", ".join(f"{count} {kind}" for kind, count in source["sets"].items())
        return [
            f"grammar of seed {source['grammar']}: {source['states']:,} states, {source['words']} words; sets: {sets}"
        ]
    return [f"{source['dataset']} at {source['commit'] or 'the local copy'}"]


def main() -> None:
    """Command line; see the module's docstring."""
    from configs.load import load_config

    parser = ArgumentParser(prog="python -m data.prepare", description="Build the token store of a recipe.")
    parser.add_argument("--config", required=True, help="the recipe, a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="keys to set over the recipe's")
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.overrides)
    print(summary(open_store(config.data)))


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
