"""Models that students learn from: of Chorus, of `transformers` and of torchaudio, behind one interface."""

from launcher.training.teachers.teacher import Teacher, TeacherOutput

__all__ = ["Teacher", "TeacherOutput"]
