"""Where prompts come from."""

from expunge.prompts.base import Candidate, ForgetPrompt, PromptSource, ScenePrompt
from expunge.prompts.folder import FolderConfig, PromptFolder
from expunge.prompts.known import KnownConcepts
from expunge.prompts.llm import LlmConfig, LlmPrompts
from expunge.prompts.vocabulary import Vocabulary, VocabularyConfig

__all__ = [
    "Candidate",
    "FolderConfig",
    "ForgetPrompt",
    "KnownConcepts",
    "LlmConfig",
    "LlmPrompts",
    "PromptFolder",
    "PromptSource",
    "ScenePrompt",
    "Vocabulary",
    "VocabularyConfig",
]
