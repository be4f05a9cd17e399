"""The users of the fraud example, once for each spelling of their key."""

from __future__ import annotations

from featurekit_dagster import Entity

user = Entity(name="user", join_keys=["user_id"], description="Somebody who pays.")
warehouse_user = Entity(
    name="warehouse_user", join_keys=["USER_ID"], description="The same, as the warehouse spells the columns."
)
