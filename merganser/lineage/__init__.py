"""Where models come from: the manifest that travels with a checkpoint, and its verification."""

from merganser.lineage.manifest import Manifest, read_manifest
from merganser.lineage.verify import verify

__all__ = ["Manifest", "read_manifest", "verify"]
