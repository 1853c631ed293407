"""Where models come from: the manifest that travels with a checkpoint, and its verification."""

from merganser.lineage.manifest import Manifest, read_manifest
from merganser.lineage.statistics import PAIRED, StatisticsNote, raw_note, statistics_note
from merganser.lineage.verify import verify

__all__ = ["PAIRED", "Manifest", "StatisticsNote", "raw_note", "read_manifest", "statistics_note", "verify"]
