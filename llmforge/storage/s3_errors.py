"""What an S3 server, or the way to it, refused, in words that say what to do.

In: the exception of boto3 and what was being done. Out: a `StorageError`. No network here. The server's own message is
shown only where we have no better words; credentials never are.
"""

from __future__ import annotations

from boto3.exceptions import Boto3Error, RetriesExceededError
from botocore import exceptions as sdk
from botocore.exceptions import BotoCoreError, ClientError
from s3transfer.exceptions import S3DownloadFailedError

from llmforge.errors import StorageError
from llmforge.storage.types import DamagedError, NotFoundError, PassingError

SdkError = BotoCoreError | ClientError | Boto3Error | S3DownloadFailedError

_MISSING = frozenset({"NoSuchKey", "404", "NotFound"})

_DENIED = (
    "the server denies access",
    "These credentials need s3:ListBucket and s3:ListBucketMultipartUploads on the bucket, and s3:GetObject,"
    " s3:PutObject, s3:DeleteObject, s3:ListMultipartUploadParts and s3:AbortMultipartUpload on its objects; or use"
    " other credentials.",
)
_EXPIRED = (
    "the temporary credentials have expired or are not valid",
    "Fetch new ones; all of AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN change together.",
)
_WRONG_REGION = (
    "the bucket is in another region",
    "Set AWS_DEFAULT_REGION to the region of the bucket, or AWS_ENDPOINT_URL to its server.",
)
_PASSING = frozenset(
    {
        "SlowDown",
        "ServiceUnavailable",
        "InternalError",
        "RequestTimeout",
        "OperationAborted",
        "ConditionalRequestConflict",
        "500",
        "502",
        "503",
        "504",
    }
)
_CHANGED = ("the object was changed while it was being read", "Try again once nobody writes it.")
_RIVAL = ("another write to the same object is under way", "Try again once it has ended.")
_OVERLOADED = ("the server is overloaded or out of order", "Try again later.")

_ANSWERS: dict[str, tuple[str, str]] = {
    "NoSuchBucket": ("the bucket does not exist", "Create it, or correct the address."),
    "InvalidBucketName": (
        "this is not a valid name of a bucket",
        "Names have 3 to 63 small letters, digits, dots and hyphens: correct the address.",
    ),
    "InvalidAccessKeyId": (
        "the server does not know the access key (wrong credentials)",
        "Check AWS_ACCESS_KEY_ID, and that AWS_ENDPOINT_URL names the server that gave it.",
    ),
    "SignatureDoesNotMatch": (
        "the secret key does not fit the access key (wrong credentials)",
        "Check AWS_SECRET_ACCESS_KEY and AWS_ACCESS_KEY_ID; a blank or a line end after them counts as part of them.",
    ),
    "AccessDenied": _DENIED,
    "AllAccessDisabled": _DENIED,
    "AccountProblem": _DENIED,
    "Forbidden": _DENIED,
    "403": _DENIED,
    "ExpiredToken": _EXPIRED,
    "InvalidToken": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "RequestTimeTooSkewed": (
        "the clocks of this machine and of the server differ by more than the server allows",
        "Set the clock of this machine, best by NTP.",
    ),
    "PermanentRedirect": _WRONG_REGION,
    "AuthorizationHeaderMalformed": _WRONG_REGION,
    "301": _WRONG_REGION,
    "MissingContentLength": (
        "the server does not understand checksums that follow the data",
        "Set AWS_REQUEST_CHECKSUM_CALCULATION=when_required on all nodes.",
    ),
    "OperationAborted": _RIVAL,
    "ConditionalRequestConflict": _RIVAL,
    "SlowDown": _OVERLOADED,
    "ServiceUnavailable": _OVERLOADED,
    "InternalError": _OVERLOADED,
    "500": _OVERLOADED,
    "502": _OVERLOADED,
    "503": _OVERLOADED,
    "504": _OVERLOADED,
    "PreconditionFailed": _CHANGED,
}

_NO_CREDENTIALS = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY on all nodes, or give the machines a role."
_UNREACHABLE = "Check AWS_ENDPOINT_URL, that the server runs, and the network and proxy of this machine."

_BROKEN_CONNECTIONS = (sdk.ConnectionError, sdk.HTTPClientError, sdk.IncompleteReadError, RetriesExceededError)
_FAILURES: tuple[tuple[type[Exception], str, str], ...] = (
    (sdk.NoCredentialsError, "no credentials were found", _NO_CREDENTIALS),
    (sdk.PartialCredentialsError, "only a part of the credentials was found", _NO_CREDENTIALS),
    (sdk.CredentialRetrievalError, "the credentials could not be fetched", _NO_CREDENTIALS),
    (sdk.ProfileNotFound, "the profile of AWS_PROFILE does not exist", _NO_CREDENTIALS),
    (sdk.SSLError, "the server's certificate is not trusted", "Set AWS_CA_BUNDLE to a file with its authority."),
    (sdk.ConnectionError, "the server cannot be reached", _UNREACHABLE),
    (sdk.HTTPClientError, "the connection to the server failed", _UNREACHABLE),
    (sdk.IncompleteReadError, "the connection to the server broke", _UNREACHABLE),
    (RetriesExceededError, "the connection to the server broke again and again", _UNREACHABLE),
    (S3DownloadFailedError, *_CHANGED),
    (sdk.FlexibleChecksumError, "the bytes received do not have the checksum stored with them", "Read it again."),
    (sdk.NoRegionError, "no region is set", "Set AWS_DEFAULT_REGION."),
    (sdk.ParamValidationError, "the address is not valid", "Correct it: s3://bucket/prefix."),
)


def explain(error: SdkError, uri: str, action: str, endpoint: str) -> StorageError:
    """What stopped `action` on `uri`: a `StorageError` of the kind that says whether it may pass."""
    code = error_code(error)
    if code in _MISSING:
        return NotFoundError(f"{uri}: no such object at {endpoint}. Check the address.")
    found, advice = _words(error, code)
    if isinstance(error, sdk.FlexibleChecksumError):
        return DamagedError(f"{uri}: {found}; the server is {endpoint}. {advice}")
    kind = PassingError if _may_pass(error, code) else StorageError
    return kind(f"{uri}: cannot {action}: {found}; the server is {endpoint}. {advice}")


def error_code(error: BaseException | None) -> str:
    """The code in a server's answer; empty when the error is not an answer."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def _may_pass(error: SdkError, code: str) -> bool:
    return code in _PASSING or (isinstance(error, _BROKEN_CONNECTIONS) and not isinstance(error, sdk.SSLError))


def _words(error: SdkError, code: str) -> tuple[str, str]:
    if code in _ANSWERS:
        found, advice = _ANSWERS[code]
        return f"{found} ({code})", advice
    for kind, found, advice in _FAILURES:
        if isinstance(error, kind):
            return f"{found} ({type(error).__name__})", advice
    return f"{error}", "Try again, or ask who runs the server."
