"""Everything that can go wrong and be told to a user.

ServiceError                 500
+-- BadImage                 400  empty, undecodable
+-- BadRequest               400  two images, a malformed form
+-- Unauthorized             401
+-- UnknownModel             404
+-- TooLarge                 413  bytes or pixels over a limit
+-- UnsupportedMedia         415  neither image bytes nor multipart; a format that is not accepted
+-- InvalidParameter         422  a parameter out of range
+-- CannotExplain            422  the model's family has no such explanation
+-- Unavailable              503  answered with Retry-After
|   +-- QueueFull
|   +-- NotReady                  loading, warming up, draining
|   +-- OutOfDeviceMemory
+-- DeadlineExceeded         504
+-- CheckpointError               a weight file that does not fit: import and start-up only
+-- StoreError                    a model store that can't be read or written
+-- DownloadError                 a hub that can't be reached or lacks the model

`detail` is a sentence for the user: it names the value and the remedy.
"""

from __future__ import annotations


class ServiceError(Exception):
    """The base: `status` and `title` are the class's, `detail` and `errors` the occurrence's.

    detail: one or two sentences for the user.
    errors: one entry a parameter at fault, {"parameter": ..., "detail": ...}.
    retry_after: seconds after which another try is worth it, or None.
    request_id: the request's, where the error came from a server.
    """

    status = 500
    type = "internal-error"
    title = "Internal error"

    def __init__(
        self,
        detail: str,
        *,
        errors: list[dict[str, str]] | None = None,
        retry_after: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = errors
        self.retry_after = retry_after
        self.request_id = request_id


class BadImage(ServiceError):
    """The bytes are no image, or a broken one."""

    status, type, title = 400, "bad-image", "The image can't be decoded"


class BadRequest(ServiceError):
    """The request is malformed in another way than its image."""

    status, type, title = 400, "bad-request", "Bad request"


class Unauthorized(ServiceError):
    """An API key is configured and the request lacks it."""

    status, type, title = 401, "unauthorized", "API key required"


class UnknownModel(ServiceError):
    """No loaded model has that name."""

    status, type, title = 404, "unknown-model", "Unknown model"


class TooLarge(ServiceError):
    """The body has too many bytes, or the image too many pixels."""

    status, type, title = 413, "too-large", "Too large"


class UnsupportedMedia(ServiceError):
    """The body is neither image bytes nor multipart, or its image format is not accepted."""

    status, type, title = 415, "unsupported-media-type", "Unsupported media type"


class InvalidParameter(ServiceError):
    """A parameter is out of its range."""

    status, type, title = 422, "invalid-parameter", "Invalid parameter"


class CannotExplain(ServiceError):
    """The model's family can't give the explanation asked for."""

    status, type, title = 422, "cannot-explain", "No such explanation for this model"


class Unavailable(ServiceError):
    """The service can't take the request now; a later try may succeed."""

    status, type, title = 503, "unavailable", "Unavailable"


class QueueFull(Unavailable):
    """More requests are waiting than the queue may hold."""

    type, title = "queue-full", "The queue is full"


class NotReady(Unavailable):
    """The service is loading, warming up or draining."""

    type, title = "not-ready", "Not ready"


class OutOfDeviceMemory(Unavailable):
    """The device has no memory for even this one image."""

    type, title = "out-of-device-memory", "Out of device memory"


class DeadlineExceeded(ServiceError):
    """The request's deadline passed before it was answered."""

    status, type, title = 504, "deadline-exceeded", "Deadline exceeded"


class CheckpointError(ServiceError):
    """A weight file does not hold what the model needs."""

    type, title = "bad-checkpoint", "The checkpoint does not fit"


class StoreError(ServiceError):
    """The model store can't be read or written, or lacks what was asked for."""

    type, title = "model-store", "Model store"


class DownloadError(ServiceError):
    """A model can't be downloaded."""

    type, title = "download", "Download failed"
