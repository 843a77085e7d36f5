"""Everything that can go wrong on purpose, in one tree.

    QuietchoirError                    exit 1
    ├── ConfigError                    a file or flag the owner can mend (exit 2)
    │   └── MissingPartError           an optional part of the package that is not installed
    ├── DataError                      examples that cannot be read or used
    │   └── UnknownConversationError   none of this name is kept
    ├── TrainingError                  a loss or gradient that is not finite; the adapter is
                                       unchanged
    ├── ModelError                     model files
    │   ├── ModelNotFoundError         not on this disk; the message says how to pull it
    │   ├── ModelFileError             on this disk, but not what it claims to be
    │   │   └── UnsupportedModelError  sound as far as is known, but not computed by core/models
    │   ├── IntegrityError             bytes whose hash is not the expected one
    │   ├── LicenceError               not open, and not agreed to
    │   └── PullStoppedError           the owner changed their mind
    ├── EngineError                    generation
    │   ├── RequestError               a request that can never run (too long, unknown adapter)
    │   │   └── ChatTemplateError      the model cannot chat: no template, or one that cannot be
                                       used
    │   ├── ToolCallCutError           a call that the token limit cut; nothing was called
    │   ├── DeviceLostError            a device that failed or is gone; the job moves to another
    │   ├── CacheError                 a saved conversation that does not fit this model, adapter or
                                       engine
    │   └── OverloadedError            a request that could run later
    ├── CryptoError                    keys, masks, ciphertexts
    │   ├── AuthenticationError        wrong key, wrong context or changed bytes; never told apart
    │   ├── ThresholdError             too few parties to open anything
    │   ├── ProtocolError              a peer broke the protocol's order or rules
    │   └── BudgetError                what a peer may still learn is used up
    ├── WorkerError                    a child process crashed or ran out of time; the next call
    │                                  gets a fresh one
    ├── FederationError                rosters, rounds, links
    │   ├── RosterError                unsigned, foreign, expired or older federation file
    │   ├── MessageError               a message that is refused; nothing was changed
    │   └── RoundAborted               the round ended without a sum; the adapter is unchanged
    │       └── DisagreementError      sealed mode: members ended a round with different adapters
    ├── RetrievalError                 collections and memory
    │   ├── DocumentError              one document that cannot be read; the others are
    │   └── UnknownEntryError          no such collection, document, passage or fact
    ├── ApprovalError                  an answer to a question that nobody asks (any more)
    └── PluginError                    other people's code
        ├── ManifestError              a manifest that asks for what does not exist
        ├── RegistryError              a registry, or a release in it, that is not to be believed
        ├── SandboxUnavailableError    this machine cannot confine it, so it does not run
        └── ToolError                  a call that failed, timed out or was killed

Every message says what was found, what was expected and what to do about it.
"""


class QuietchoirError(Exception):
    """Root of the tree. `exit_code` is what the command line ends with."""

    exit_code = 1


class ConfigError(QuietchoirError):
    """A configuration file or flag that its owner can mend."""

    exit_code = 2


class MissingPartError(ConfigError):
    """An optional part of the package is not installed; the message names the extra that brings
    it.
    """


class DataError(QuietchoirError):
    """Examples that cannot be read or used; nothing was imported."""


class UnknownConversationError(DataError):
    """No conversation of this name is kept here."""


class TrainingError(QuietchoirError):
    """A loss or gradient that is not finite; the adapter is unchanged."""


class ModelError(QuietchoirError):
    """A model file cannot be used."""


class ModelNotFoundError(ModelError):
    """The model is not on this disk."""


class ModelFileError(ModelError):
    """The file is there, but is not what it claims to be."""


class UnsupportedModelError(ModelFileError):
    """A family or a setting that core/models does not compute; transformers may."""


class IntegrityError(ModelError):
    """Bytes whose hash is not the expected one; the file did not stay."""


class LicenceError(ModelError):
    """A licence that is not open and that the owner has not agreed to; nothing was fetched."""


class PullStoppedError(ModelError):
    """The owner stopped a pull; what came of it stays for the next one."""


class EngineError(QuietchoirError):
    """Generation failed."""


class RequestError(EngineError):
    """This request can never run as it is."""


class ChatTemplateError(RequestError):
    """This model cannot chat: it has no chat template, or one that cannot be used. It can still
    complete.
    """


class ToolCallCutError(EngineError):
    """The token limit cut a tool call; what there is of it is no call and no text."""


class DeviceLostError(EngineError):
    """A device failed or is gone; what it was to do is done by another."""


class CacheError(EngineError):
    """A saved conversation does not fit this model, adapter or engine; nothing was restored."""


class OverloadedError(EngineError):
    """The request could run later."""


class CryptoError(QuietchoirError):
    """Keys, masks or ciphertexts."""


class AuthenticationError(CryptoError):
    """Wrong key, wrong context or changed bytes. Which of them is not told."""


class ThresholdError(CryptoError):
    """Too few parties; nothing was revealed."""


class ProtocolError(CryptoError):
    """A peer broke the order or the rules of a protocol; state is unchanged."""


class BudgetError(CryptoError):
    """What a peer may still learn is used up; nothing was answered."""


class WorkerError(QuietchoirError):
    """A child process crashed or ran out of time; the next call gets a fresh one."""


class FederationError(QuietchoirError):
    """Rosters, rounds and links."""


class RosterError(FederationError):
    """A federation file that is unsigned, foreign, expired or older than the one known."""


class MessageError(FederationError):
    """A message that is refused; nothing was changed."""


class RoundAborted(FederationError):
    """The round ended without a sum; the adapter is unchanged."""


class DisagreementError(RoundAborted):
    """Members of a sealed round ended with different adapters: no adapter is shared by enough of
    them.
    """


class RetrievalError(QuietchoirError):
    """Collections and memory; what they hold is as it was."""


class DocumentError(RetrievalError):
    """One document that cannot be read."""


class UnknownEntryError(RetrievalError):
    """No such collection, document, passage or fact."""


class ApprovalError(QuietchoirError):
    """An answer to a question that nobody asks, or asks any more; nothing was carried out."""


class PluginError(QuietchoirError):
    """Other people's code."""


class ManifestError(PluginError):
    """A manifest that cannot be accepted."""


class RegistryError(PluginError):
    """A registry or a release in it is not to be believed; what is installed is as it was."""


class SandboxUnavailableError(PluginError):
    """This machine cannot confine a plugin, so the plugin does not run."""


class ToolError(PluginError):
    """A tool call failed, ran out of time or was killed."""
