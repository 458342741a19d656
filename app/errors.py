"""Every error that Sluice raises itself, in one tree.

* SluiceError
  + SettingsError          a setting is unknown or its value does not fit
  + BundleError            a model bundle cannot be used; the message names the file and the field
    - DigestMismatch       a file of the bundle is not the one that was packed
    - UnsafeBundle         loading it could run code, or leave the bundle's folder
    - RepositoryAway       the repository did not answer, or broke off; trying again goes on from there
  + TopicError             a topic is missing, or its partitions do not fit the others
    - PartitionMismatch    its partitions do not fit; waiting cannot help
  + DeliveryError          an output record was not acknowledged; the worker must restart
  + DeadLetterError        a dead letter cannot be listed, shown or replayed as asked
  + DeviceLost             a device failed or ran out of memory under a model
  + DeviceFull             a model does not fit into what its device may use
  + FeatureStoreError      the online store did not answer in time or not in kind
"""

from __future__ import annotations


class SluiceError(Exception):
    """Base of all errors of this service; the message names the cause and the next step."""


class SettingsError(SluiceError):
    """A setting is unknown or out of range; fix it where the message says it comes from."""


class BundleError(SluiceError):
    """A model bundle cannot be used; the version that served before goes on serving."""


class DigestMismatch(BundleError):
    """A file of the bundle differs from what was packed; copy or pack the bundle again."""


class UnsafeBundle(BundleError):
    """Loading could run code or leave the bundle's folder; it is refused, always."""


class RepositoryAway(BundleError):
    """The repository did not answer, or broke off; what has arrived is kept, and the next try goes on from there."""


class TopicError(SluiceError):
    """A topic is missing or has another number of partitions than its fellows."""


class PartitionMismatch(TopicError):
    """Data topics differ in their number of partitions; waiting cannot help, somebody must recreate the odd ones."""


class DeliveryError(SluiceError):
    """A record was not acknowledged by the broker; nothing more may be committed by this process."""


class DeviceLost(SluiceError):
    """A device failed or ran out of memory under a model; run the model elsewhere, or restart the worker."""


class DeviceFull(SluiceError):
    """A model does not fit into the memory that its device may use, whatever is unloaded for it."""


class FeatureStoreError(SluiceError):
    """The online store did not answer within its budget, or answered with something else."""
