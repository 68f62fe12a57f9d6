"""`erniekit data check` and `preview`: the contents and errors of data files, and samples as a model sees them.

check, check_report, format_report: counts, lengths and errors of data files, as text and as JSON.
select, preview, preview_text, preview_terminal, preview_page, bubbles: single samples, on the terminal and as an
HTML page.
"""
