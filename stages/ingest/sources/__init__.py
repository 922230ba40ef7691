"""The kinds of source that ingestion reads."""

from stages.ingest.config import ArchivesSource, DigitsSource, FolderSource, IdxSource, SourceConfig, TableSource
from stages.ingest.sources.base import Source


def open_source(config: SourceConfig) -> Source:
    """The source that a config names. Cheap: nothing is read yet."""
    if isinstance(config, DigitsSource):
        from stages.ingest.sources.digits import Digits

        return Digits()
    if isinstance(config, IdxSource):
        from stages.ingest.sources.idx import Idx

        return Idx(config.path)
    if isinstance(config, TableSource):
        from stages.ingest.sources.table import Table

        return Table(config)
    if isinstance(config, ArchivesSource):
        from stages.ingest.sources.archives import Archives

        return Archives(config)
    assert isinstance(config, FolderSource)
    from stages.ingest.sources.folder import Folder

    return Folder(config)
