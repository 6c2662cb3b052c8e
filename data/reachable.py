"""Whether the Hugging Face hub can be reached, within seconds (the libraries retry for half a minute)."""

import threading
import urllib.error
import urllib.request

from common.errors import InputError

PROBE_SECONDS = 5.0


def check_hub_reachable(wanted: str, alternative: str) -> None:
    """Raise InputError within PROBE_SECONDS if the hub does not answer; do nothing in offline mode, where caches are used.
    ``wanted`` (the key and value that need the hub) and ``alternative`` (what to do without it) are for the message."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return
    answered = threading.Event()
    # In a thread because no timeout covers a name server that does not answer.
    prober = threading.Thread(target=_probe, args=(constants.ENDPOINT, answered), daemon=True)
    prober.start()
    prober.join(PROBE_SECONDS)
    if not answered.is_set():
        raise InputError(
            f"{wanted}: {constants.ENDPOINT} does not answer; {alternative}, "
            "or set HF_HUB_OFFLINE=1 and HF_HOME to a cache that holds it"
        )


def _probe(address: str, answered: threading.Event) -> None:
    request = urllib.request.Request(address, method="HEAD")  # noqa: S310 - the hub's own address
    try:
        urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()  # noqa: S310
    except OSError as error:
        if not isinstance(error, urllib.error.HTTPError):  # a refusal is an answer
            return
    answered.set()
