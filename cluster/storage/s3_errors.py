"""What boto3 raises, in this program's words."""

from __future__ import annotations

from datetime import UTC, datetime

from boto3.exceptions import Boto3Error
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from cluster.errors import UserError
from cluster.storage.base import Conflict, NotFound
from cluster.storage.retry import PASSING, Transient

ERRORS = (Boto3Error, BotoCoreError, ClientError, ResponseParserError, HTTPError, Transient)
"""All that a request to S3 raises."""
BROKEN = (ConnectionError, HTTPClientError, IncompleteReadError, ResponseParserError, HTTPError, Transient)
"""Connections that fail, and answers that end early or are garbled.

A body that ends before its Content-Length is IncompleteReadError or ResponseStreamingError (an
HTTPClientError) in botocore. A list or an error document that is cut, and an error in plain text from a
machine on the way, are ResponseParserError, which boto3 neither retries nor counts among its own errors.
Of what breaks while a body is read, botocore translates only some, so that urllib3's own errors come too.
"""
REFUSED = {
    *("403", "AccessDenied", "AllAccessDisabled", "AuthorizationHeaderMalformed", "InvalidAccessKeyId"),
    *("InvalidBucketName", "InvalidToken", "NoSuchBucket", "PermanentRedirect", "SignatureDoesNotMatch"),
}
"""Answers that no retry mends: the bucket, the credentials or the rights are wrong."""
EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
"""Answers to credentials that were good once."""
SKEWED = {"RequestTimeTooSkewed", "RequestInTheFuture"}
"""Answers to requests that were signed at another time than the server's."""
FULL = {
    *("QuotaExceeded", "StorageQuotaExceeded", "InsufficientStorage", "InsufficientCapacity"),
    *("XMinioAdminBucketQuotaExceeded", "XMinioStorageFull", "XMinioStorageQuotaExceeded"),
}
"""What stores other than AWS's answer where a bucket's quota, or a server's disk, has no room left."""
WRITES = {"PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "DeleteObject"}
THROTTLED = {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException"}
"""Answers that a retry mends, whatever their HTTP status."""


class Undecided(Conflict):
    """Another write of the key was under way, and S3 asks for the request again."""


def explained(error: Exception, place: str, key: str) -> Exception:
    """What to raise in place of an error of a request for `key` at `place`, a root's address and its endpoint.

    What a machine did is OSError, and Transient where it may pass.
    """
    if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
        return UserError(f"{place}: no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if isinstance(error, ClientError):
        return _answered(error, place, key)
    # An upload of several parts wraps the error of the part that failed.
    if isinstance(error.__context__, ClientError):
        return _answered(error.__context__, place, key)
    kind = Transient if isinstance(error, BROKEN) else OSError
    return kind(f"{place}: {key}: {error}")


def _answered(error: ClientError, place: str, key: str) -> Exception:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if (refusal := _refusal(error, code, status)) is not None:
        return UserError(f"{place}: {refusal}")
    if status in PASSING or code in THROTTLED:
        return Transient(f"{place}: {key}: {error}")
    if status == 404:
        return NotFound(key)
    if status == 409:
        return Undecided(code)
    if status == 412:
        return Conflict(code)
    if status == 416:
        return ValueError(f"{key}: asked for bytes beyond its end")
    return OSError(f"{place}: {key}: {error}")


def _refusal(error: ClientError, code: str, status: object) -> str | None:
    """What a user can mend: what is wrong and what to do; None where the error is of another sort."""
    if code in EXPIRED:
        return f"the credentials have expired ({code}): renew them, for example by `aws sso login`, then `resume`"
    if code in SKEWED:
        there = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "another time")
        here = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
        return f"this machine's clock is wrong: it says {here}, the server {there}: set it, for example by NTP"
    if code in FULL or status == 507:
        return f"no room left ({code or status}): raise the bucket's quota or delete what nobody needs, then `resume`"
    if code == "AccessDenied" and error.operation_name in WRITES:
        return (
            f"{code}: these credentials may not write here: "
            f"give them the right to {error.operation_name}, or name another --root"
        )
    return f"{code}: check bucket, region, credentials and rights" if code in REFUSED else None
