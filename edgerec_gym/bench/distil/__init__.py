"""The study of distillation: teachers, students, and what each loss term is worth."""
