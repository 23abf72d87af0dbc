"""One page about one merge: rationale, sources, recipe, provenance, verification, evaluation, and what to try next.

gather     collect what lies in and beside the merged folder; everything is optional and absent things are named
charts     inline SVG whose positions are percentages, so that it fits a phone without shrinking its text
page       page.html.j2 filled in: one file, no script, no font, no request to any network
markdown   the evaluation as a section for the model card
"""

from mcp_server.steps.report.gather import Evidence, gather
from mcp_server.steps.report.markdown import model_card_section, sweep_section
from mcp_server.steps.report.page import render_page, write_report

__all__ = ["Evidence", "gather", "model_card_section", "render_page", "sweep_section", "write_report"]
