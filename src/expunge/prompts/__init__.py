"""Where prompts come from."""

from expunge.prompts.base import Candidate, ForgetPrompt, PromptSource, ScenePrompt
from expunge.prompts.vocabulary import Vocabulary

__all__ = ["Candidate", "ForgetPrompt", "PromptSource", "ScenePrompt", "Vocabulary"]
