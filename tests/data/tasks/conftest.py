import nubes.data.tasks.policies.ray
import nubes.data.tasks.policies.simple  # noqa: F401
